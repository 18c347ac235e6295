"""Questions about one picture: their beginning runs once, and the answers are what they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmframe import shared_prefix
from mmframe.batch import Sample
from mmframe.engine import Engine
from mmframe.sampling import SamplingParams
from mmframe.shared_prefix import Beginning, shared_beginnings
from tests.model.engines import LONG, ask, make_engine, make_net, picture

SHORT = SamplingParams(max_new_tokens=8)


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_prefix, "LEAST", 1)


def questions(engine: Engine) -> list[Sample]:
    """Two pictures with three and two questions, mixed; one with one; one that differs in a pixel; texts."""
    near = picture(1)
    near.putpixel((7, 7), (1, 2, 3))
    return [
        ask(engine, "what is that?", [picture(1)]),
        ask(engine, "hi"),
        ask(engine, "what was that?", [picture(1)]),
        ask(engine, "<image>\nand <image>\nin detail", [picture(2, (16, 8)), picture(3)]),
        ask(engine, "what is that?", [near]),
        ask(engine, "why is it so?", [picture(1)]),
        ask(engine, "<image>\nand <image>\nin short", [picture(2, (16, 8)), picture(3)]),
        ask(engine, "how?", [picture(4, (8, 24))]),
        ask(engine, "ho"),
    ]


def tiles_run(engine: Engine, prompts: list[Sample], monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, int]:
    """Logits after the prompts, and how many tiles went through the patch embedder."""
    seen: list[int] = []
    embedder = engine.net.patch_embedder
    assert embedder is not None
    handle = embedder.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    cache = engine.net.backbone.new_cache(len(prompts), 128)
    logits = engine.prefill(prompts, cache)
    handle.remove()
    assert cache.lengths == [len(prompt) for prompt in prompts] == cache.used.tolist()
    assert cache.num_images == [int(prompt.blocks.max()) + 1 for prompt in prompts]
    return logits, sum(seen)


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("attention", ["causal", "image_bidirectional"])
def test_a_picture_of_several_questions_runs_once(
    attention: str, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(make_net(attention), prefill_chunk=chunk)
    prompts = questions(engine)
    shared, few = tiles_run(engine, prompts, monkeypatch)
    answers = engine.generate(prompts, SHORT)
    monkeypatch.setattr(shared_prefix, "LEAST", 10**9)
    alone, all_of_them = tiles_run(engine, prompts, monkeypatch)
    assert all_of_them == sum(len(prompt.tiles) for prompt in prompts)
    once = [prompts[row] for row in (0, 3, 4, 7)]
    assert few == sum(len(prompt.tiles) for prompt in once) < all_of_them
    torch.testing.assert_close(shared, alone, atol=1e-5, rtol=1e-5)
    assert answers == [engine.generate([prompt], SHORT)[0] for prompt in prompts]
    assert len({answer.text for answer in answers}) > 5, "the model must tell the prompts apart"


def test_the_beginning_is_what_the_prompts_have_in_common() -> None:
    engine = make_engine()
    prompts = questions(engine)
    one, two, texts = sorted(shared_beginnings(prompts), key=lambda beginning: -beginning.saved)[:3]
    assert {tuple(each.rows) for each in (one, two, texts)} == {(0, 2, 5), (3, 6), (1, 8)}
    for beginning in (one, two, texts):
        first = prompts[beginning.rows[0]]
        for row in beginning.rows:
            assert torch.equal(prompts[row].ids[: beginning.length], first.ids[: beginning.length])
            assert len(prompts[row]) > beginning.length
        after = {int(prompts[row].ids[beginning.length]) for row in beginning.rows}
        assert len(after) > 1, "no longer beginning is shared"
    same = [prompts[0], prompts[0]]
    assert shared_beginnings(same) == [Beginning([0, 1], len(prompts[0]) - 1)]


def test_a_picture_behind_words_that_differ_is_not_shared() -> None:
    engine = make_engine()
    prompts = [ask(engine, f"{word} <image>?", [picture(1)]) for word in ("what", "how")]
    assert shared_beginnings(prompts) == []


@pytest.mark.parametrize("options", [dict(attention="prefix"), dict(long=True)], ids=["prefix mask", "dynamic NTK"])
def test_a_beginning_that_depends_on_what_follows_is_not_shared(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(make_net(**options))
    prompts = questions(engine)
    assert max(map(len, prompts)) > LONG
    _, tiles = tiles_run(engine, prompts, monkeypatch)
    assert tiles == sum(len(prompt.tiles) for prompt in prompts)
    assert engine.generate(prompts, SHORT) == [engine.generate([prompt], SHORT)[0] for prompt in prompts]


def test_few_tokens_are_not_worth_a_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    prompts = questions(engine)
    saved = sum(beginning.saved for beginning in shared_beginnings(prompts))
    for least, shares in ((saved, True), (saved + 1, False)):
        monkeypatch.setattr(shared_prefix, "LEAST", least)
        assert (tiles_run(engine, prompts, monkeypatch)[1] < sum(len(p.tiles) for p in prompts)) == shares
