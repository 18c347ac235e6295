"""The step of static shapes, compiled and captured: the same as the plain one."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from mmframe.engine import Engine
from mmframe.errors import UserError
from mmframe.generation import StaticStep, Step, run_prompts
from mmframe.sampling import SamplingParams
from tests.model.engines import make_engine, make_net, picture, ragged

CLOSE: dict[str, Any] = dict(atol=1e-5, rtol=1e-5)
SHORT = SamplingParams(max_new_tokens=10)
MASKS = pytest.mark.parametrize("attention", ["causal", "image_bidirectional"])
LENGTHS = pytest.mark.parametrize("long", [False, True], ids=["in context", "beyond it"])


def check_static(net: Any, atol: float = 1e-5, **options: bool) -> None:
    """Six steps over ragged rows with pictures; the cache is used twice, as a captured graph is."""
    prompts = ragged(make_engine(net))
    cache = net.backbone.new_cache(len(prompts), 256)
    static = StaticStep(net, cache, **options)
    for start in (97, 107):
        plain = Step(net, net.backbone.new_cache(len(prompts), 200))
        cache.truncate([0] * len(prompts))
        torch.testing.assert_close(run_prompts(net, prompts, cache), run_prompts(net, prompts, plain.cache))
        for token in range(start, start + 6):
            ids = [token + row for row in range(len(prompts))]
            torch.testing.assert_close(static(ids), plain(ids), atol=atol, rtol=1e-5)
        assert cache.lengths == plain.cache.lengths == cache.used.tolist()
        assert torch.equal(cache.table[:, :, :200], plain.cache.table)
        assert not (cache.table[:, :, 200:] != -1).any()


@MASKS
@LENGTHS
def test_the_static_step_equals_the_plain_one(attention: str, long: bool) -> None:
    check_static(make_net(attention, long))


def test_static_engines_answer_as_plain_ones_and_keep_their_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler or a GPU: StaticStep as the engine's step, in batches, streams and conversations."""
    net = make_net()
    plain, static = make_engine(net), make_engine(net)
    monkeypatch.setattr(Engine, "static", property(lambda self: self is static))
    prompts = ragged(plain)
    params = [SamplingParams(max_new_tokens=n) for n in (3, 17, 1, 8, 30)]
    assert static.generate(prompts, params) == plain.generate(prompts, params)
    step = static._kept
    assert isinstance(step, StaticStep) and step.cache.capacity == 256
    assert static.generate(prompts[::-1], params) == plain.generate(prompts[::-1], params)
    assert static._kept is step, "the same shapes take the same step"
    first, second = (static.stream(prompt, SHORT) for prompt in prompts[:2])
    mixed = [next(first), next(second), *first, *second]  # two answers at once do not share a cache
    whole = [answer.text for answer in plain.generate(prompts[:2], SHORT)]
    assert "".join([mixed[0], *mixed[2:]]).startswith(whole[0]) and sorted("".join(mixed)) == sorted("".join(whole))
    chats = [engine.chat() for engine in (static, plain)]
    for text, images in [("hi", []), ("what?", [picture(5)]), ("well", [])]:
        answers = ["".join(chat.say(text, images, SHORT)) for chat in chats]
        assert answers[0] == answers[1]
    assert chats[0].reused == chats[1].reused > 0


def test_a_step_is_one_graph_without_a_look_at_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile traces all of it, which is what a CUDA graph needs as well; no code is generated here."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    check_static(make_net("image_bidirectional", long=True), compile=True)


@pytest.mark.slow
def test_a_compiled_step_equals_the_plain_one() -> None:
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(3))
    except Exception as error:  # no compiler, no headers, ...: the reason is what matters
        pytest.skip(f"torch.compile cannot run here: {str(error).splitlines()[0]}")
    net = make_net()
    check_static(net, compile=True)
    prompts = ragged(make_engine(net))
    assert make_engine(net, compile=True).generate(prompts, SHORT) == make_engine(net).generate(prompts, SHORT)


def test_a_graph_without_a_gpu_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="cuda_graph=True needs the model on a CUDA device, it is on cpu"):
        make_engine(cuda_graph=True)


@pytest.mark.gpu
@MASKS
@LENGTHS
def test_a_captured_step_equals_the_plain_one(attention: str, long: bool) -> None:
    check_static(make_net(attention, long).cuda(), atol=1e-4, cuda_graph=True)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_captured_engine_answers_as_a_plain_one(compiled: bool) -> None:
    net = make_net().cuda()
    prompts = ragged(make_engine(net))
    captured = make_engine(net, cuda_graph=True, compile=compiled)
    for _ in range(2):
        assert captured.generate(prompts, SHORT) == make_engine(net).generate(prompts, SHORT)
    chats = [engine.chat() for engine in (captured, make_engine(net))]
    for text, images in [("hi", []), ("what?", [picture(5)]), ("well", [])]:
        answers = ["".join(chat.say(text, images, SHORT)) for chat in chats]
        assert answers[0] == answers[1]
