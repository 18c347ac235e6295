"""The engine: batches, chunks, streams, limits. What a row gets never depends on how it was run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmframe.batch import Batch, Sample
from mmframe.engine import Engine, context_limit
from mmframe.errors import UserError
from mmframe.generation import Step, generate, piece_ends, run_prompts
from mmframe.kinds import TokenKind
from mmframe.model import MultimodalLM
from mmframe.sampling import SamplingParams
from tests.helpers import all_logits, row, tiny_internlm2, tiny_llama, tiny_net
from tests.model.engines import ask, make_engine, make_net, make_processor, picture, ragged

MASKS = pytest.mark.parametrize("attention", ["causal", "image_bidirectional"])
LENGTHS = pytest.mark.parametrize("long", [False, True], ids=["in context", "beyond it"])
CLOSE: dict[str, Any] = dict(atol=1e-5, rtol=1e-5)
SHORT = SamplingParams(max_new_tokens=12)


# ---- batches


@MASKS
@LENGTHS
def test_a_batch_gives_what_its_prompts_give_alone(attention: str, long: bool) -> None:
    engine = make_engine(make_net(attention, long))
    prompts = ragged(engine)
    assert len({len(prompt) for prompt in prompts}) == len(prompts)
    together = engine.generate(prompts, SHORT)
    assert together == [engine.generate([prompt], SHORT)[0] for prompt in prompts]
    assert together[::-1] == engine.generate(prompts[::-1], SHORT)
    assert all(made.finish_reason == "length" and len(made.ids) == 12 for made in together)
    assert len({made.text for made in together}) == len(prompts), "the model must tell the prompts apart"


@MASKS
def test_the_engine_takes_the_most_likely_token_of_the_whole_row_each_time(attention: str) -> None:
    """Against forwards without any cache."""
    engine = make_engine(make_net(attention))
    for prompt in ragged(engine):
        said: list[int] = []
        for _ in range(5):
            said.append(int(all_logits(engine.net, extended(prompt, said))[-1].argmax()))
        assert engine.generate([prompt], SamplingParams(max_new_tokens=5))[0].ids == said


def extended(prompt: Sample, ids: list[int]) -> Sample:
    count = len(prompt) + len(ids)
    return Sample.from_ids(
        [*prompt.ids.tolist(), *ids],
        kinds=[*prompt.kinds.tolist(), *[0] * len(ids)],
        blocks=[*prompt.blocks.tolist(), *[-1] * len(ids)],
        positions=list(range(count)),
        tiles=prompt.tiles,
    )


def test_rows_finish_on_their_own_and_leave_the_others_as_they_were() -> None:
    """Every prompt gets its own length and its own stop text."""
    engine = make_engine()
    prompts = ragged(engine)
    free = engine.generate(prompts, SamplingParams(max_new_tokens=24))
    params = [
        SamplingParams(max_new_tokens=24, stop=(free[0].text[4:7],)),
        SamplingParams(max_new_tokens=3),
        SamplingParams(max_new_tokens=24),
        SamplingParams(max_new_tokens=24, stop=(free[3].text[15:17], "never said")),
        SamplingParams(max_new_tokens=1),
    ]
    made = engine.generate(prompts, params)
    assert [m.finish_reason for m in made] == ["stop", "length", "length", "stop", "length"]
    for answer, whole, p in zip(made, free, params, strict=True):
        ends = [whole.text.find(stop) for stop in p.stop if stop in whole.text] or [p.max_new_tokens]
        assert answer.text == whole.text[: min(ends)]
        assert answer.ids == whole.ids[: len(answer.ids)]


def test_a_stop_id_ends_an_answer_and_is_not_part_of_it() -> None:
    net, processor = make_net(), make_processor()
    free = Engine(net, processor).generate(ragged(Engine(net, processor)), SHORT)
    processor.end_id = free[0].ids[5]
    made = Engine(net, processor).generate(ragged(Engine(net, processor)), SHORT)
    for answer, whole in zip(made, free, strict=True):
        ids = whole.ids[: whole.ids.index(processor.end_id)] if processor.end_id in whole.ids else whole.ids
        assert answer.ids == ids
        assert answer.finish_reason == ("stop" if len(ids) < 12 else "length")
    assert made[0].finish_reason == "stop"


def test_a_stop_text_that_is_a_marker_is_met_as_an_id() -> None:
    """Markers are left out of the text."""
    net = make_net()
    with torch.no_grad():
        net.get_parameter("backbone.output.weight")[make_processor().tokenizer.special_id("<sep>")] = 1.0
    engine = make_engine(net)
    prompts = ragged(engine)
    free = engine.generate(prompts, SamplingParams(max_new_tokens=40))
    sep = engine.processor.tokenizer.special_id("<sep>")
    assert any(sep in answer.ids for answer in free) and not any("<sep>" in answer.text for answer in free)
    made = engine.generate(prompts, SamplingParams(max_new_tokens=40, stop=("<sep>",)))
    assert [a.ids for a in made] == [[*f.ids, sep][: [*f.ids, sep].index(sep)] for f in free]


def test_the_plain_loop_gives_the_same() -> None:
    engine = make_engine()
    prompts = ragged(engine)
    assert generate(engine.net, prompts, 12).ids == [made.ids for made in engine.generate(prompts, SHORT)]


def test_no_prompts_no_answers() -> None:
    assert make_engine().generate([]) == []


# ---- what a step costs


def test_a_step_makes_no_samples_and_calls_nothing_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    prompts = ragged(engine)
    expected = engine.generate(prompts, SHORT)
    heads: list[int] = []
    head = engine.net.backbone.head
    calls: list[str] = []
    for layer, site, experts in engine.net.backbone.sites():
        if "visual" in experts:
            experts["visual"].register_forward_hook(lambda *_, name=f"{layer}.{site}": calls.append(name))

    def counted(h_SD: Tensor) -> Tensor:
        heads.append(len(h_SD))
        return head(h_SD)

    monkeypatch.setattr(engine.net.backbone, "head", counted)
    answers = engine.new_answers(prompts, SHORT)
    step = engine.new_step(len(prompts), 200)
    logits = engine.prefill(prompts, step.cache)
    assert calls, "pictures go to the visual experts"
    calls.clear()
    for maker in ("from_ids", "__init__"):
        monkeypatch.setattr(Sample, maker, None)
    monkeypatch.setattr(Batch, "collate", None)
    for _ in engine.decode(step, logits, answers):
        pass
    assert [answer.completion() for answer in answers] == expected
    assert heads == [5] * 12 and not calls, "logits at the last position alone, text experts alone"


def test_a_text_prompt_does_not_call_the_patch_embedder() -> None:
    engine = make_engine()
    calls: list[int] = []
    assert engine.net.patch_embedder is not None
    engine.net.patch_embedder.register_forward_hook(lambda *_: calls.append(1))
    engine.generate([ask(engine, "hi")], SHORT)
    assert not calls
    engine.generate([ask(engine, "hi", [picture()])], SHORT)
    assert calls == [1]


# ---- chunked prefill


@MASKS
@LENGTHS
@pytest.mark.parametrize("chunk", [1, 3, 7, 16, 50])
def test_a_prompt_in_pieces_equals_the_prompt_at_once(attention: str, long: bool, chunk: int) -> None:
    """Ragged rows with pictures, logits after the prompt and after each of three more tokens, at 1e-5."""
    net = make_net(attention, long)
    engine = make_engine(net)
    prompts = ragged(engine)
    rows, capacity = len(prompts), max(map(len, prompts)) + 3
    caches = [net.backbone.new_cache(rows, capacity) for _ in range(2)]
    whole = run_prompts(net, prompts, caches[0])
    pieces = run_prompts(net, prompts, caches[1], chunk)
    torch.testing.assert_close(pieces, whole, **CLOSE)
    assert torch.equal(caches[0].table, caches[1].table) and torch.equal(caches[0].kinds, caches[1].kinds)
    assert caches[0].lengths == caches[1].lengths == caches[1].used.tolist()
    assert caches[0].num_images == caches[1].num_images == [0, 1, 0, 2, 1]
    for token in range(3):
        a, b = (Step(net, cache)([100 + token] * rows) for cache in caches)
        torch.testing.assert_close(a, b, **CLOSE)
    given = make_engine(net, prefill_chunk=chunk).generate(prompts, SHORT)
    assert given == engine.generate(prompts, SHORT)


def test_pieces_may_end_inside_a_picture_unless_its_slots_need_one_another() -> None:
    sample = row("ttt[ii]ttt[i]tttttttt")  # slots 4..11 and 17..20 of 30 tokens
    assert piece_ends(sample, 6, "causal") == [6, 12, 18, 24, 30]
    assert piece_ends(sample, 6, "image_bidirectional") == [4, 12, 17, 23, 29, 30]
    assert piece_ends(sample, 100, "image_bidirectional") == [30]
    assert piece_ends(row("iii"), 5, "image_bidirectional") == [12]
    prompt = row("t[i]tttTTTttttTTt")  # 10 tokens in front of the first answer
    assert piece_ends(prompt, 4, "prefix") == [10, 14, 18, 20]
    assert piece_ends(row("tttttt|tttt"), 4, "prefix") == [6, 10]


def test_a_chunk_bounds_the_tokens_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(prefill_chunk=8)
    seen: list[int] = []
    forward = engine.net.backbone.forward
    monkeypatch.setattr(engine.net.backbone, "forward", lambda x, *rest: (seen.append(len(x)), forward(x, *rest))[1])
    prompt = ask(engine, "what is that?", [picture(0, (24, 24))])
    engine.generate([prompt], SamplingParams(max_new_tokens=1))
    assert max(seen) == 8 and sum(seen) == len(prompt) > 50


# ---- streams and seeds


def test_a_stream_gives_the_text_piece_by_piece() -> None:
    engine = make_engine()
    for prompt in ragged(engine):
        whole = engine.generate([prompt], SHORT)[0].text
        pieces = list(engine.stream(prompt, SHORT))
        assert "".join(pieces) == whole and len(pieces) > 6 and all(pieces)


def test_draws_depend_on_the_seed_and_not_on_the_neighbours() -> None:
    engine = make_engine()
    prompts = ragged(engine)
    params = [SamplingParams(max_new_tokens=12, temperature=1.5, seed=seed) for seed in range(5)]
    together = engine.generate(prompts, params)
    assert together == engine.generate(prompts, params), "the same seed, the same answer"
    assert together == [engine.generate([p], q)[0] for p, q in zip(prompts, params, strict=True)]
    assert together[::-1] == engine.generate(prompts[::-1], params[::-1])
    assert "".join(engine.stream(prompts[2], params[2])) == together[2].text
    other = engine.generate([prompts[0]] * 5, params)
    assert len({made.text for made in other}) == 5, "another seed, another answer"


def test_the_repetition_penalty_counts_words_of_prompt_and_answer_and_no_slots() -> None:
    engine = make_engine()
    prompt = ask(engine, "abc", [picture()])
    answer = engine.new_answers([prompt], SamplingParams(repetition_penalty=1.2))[0]
    said = answer.sampler.said_V
    assert said is not None
    words = set(prompt.ids[prompt.kinds != TokenKind.IMAGE].tolist())
    assert set(said.nonzero().flatten().tolist()) == words
    assert engine.processor.tokenizer.pad_id not in words, "the filler of slots is no word"
    hard = SamplingParams(max_new_tokens=8, repetition_penalty=1e6)
    ids = engine.generate([prompt], hard)[0].ids
    assert len(set(ids)) == len(ids) and not words & set(ids)


# ---- precisions, models without pictures


def test_bf16_runs_and_agrees_with_fp32_in_most_of_its_logits() -> None:
    wide, narrow = make_engine(), make_engine(make_net().bfloat16())
    prompts = ragged(wide)
    a, b = (e.prefill(prompts, e.new_step(5, 100).cache) for e in (wide, narrow))
    assert b.dtype == torch.bfloat16
    assert float((a - b.float()).norm() / a.norm()) < 0.1
    alone = [narrow.generate([prompt], SHORT)[0] for prompt in prompts]
    assert all(len(answer.ids) == 12 for answer in alone)


def test_fp16_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="fp16 gives NaN"):
        make_engine(make_net().half())


def test_an_llm_without_patch_embedder_chats_and_refuses_pictures() -> None:
    full = make_net()
    net = MultimodalLM(full.backbone, None, full.router, expert_backend="torch").eval()
    engine = make_engine(net)
    prompt = ask(engine, "hi")
    assert engine.generate([prompt], SHORT) == make_engine(full).generate([prompt], SHORT)
    assert "".join(engine.chat().say("hi", params=SHORT)) == engine.generate([prompt], SHORT)[0].text
    with pytest.raises(UserError, match="'look': an image was given, but the model has no patch embedder"):
        ask(engine, "look", [picture()])
    with pytest.raises(UserError, match="chat: an image was given, but the model has no patch embedder"):
        engine.chat().say("look", [picture()])
    with pytest.raises(UserError, match="'seen': an image was given, but the model has no patch embedder"):
        all_logits(net, row("t[i]t", key="seen"))
    assert torch.isfinite(all_logits(net, row("ttt"))).all()


# ---- limits and bad input


def test_a_prompt_longer_than_the_context_is_one_clear_line() -> None:
    engine = make_engine(max_context=60)
    prompts = [ask(engine, "hi"), ask(engine, "what? " * 20, [picture()])]
    with pytest.raises(UserError) as caught:
        engine.generate(prompts, SHORT)
    message = str(caught.value)
    assert message.startswith("prompt 1 ('what? what?") and "\n" not in message
    assert f"{len(prompts[1])} tokens, 4 of them of images" in message and "a context of 60" in message


def test_an_answer_ends_with_the_context() -> None:
    engine = make_engine(max_context=50)
    prompt = ask(engine, "hi")
    answer = engine.generate([prompt], SamplingParams(max_new_tokens=100))[0]
    assert len(prompt) + len(answer.ids) == 50 and answer.finish_reason == "length"


def test_the_context_is_what_the_rotary_embedding_was_made_for() -> None:
    assert context_limit(tiny_llama()) == 2048
    assert context_limit(tiny_internlm2(rope_scaling="none", max_positions=100)) == 100
    assert context_limit(tiny_internlm2(rope_scaling="linear", rope_factor=3.0, max_positions=100)) == 300
    assert context_limit(tiny_internlm2(rope_scaling="dynamic", rope_factor=2.0, max_positions=100)) == 200


def test_empty_prompts_are_one_clear_line() -> None:
    engine = make_engine()
    for text in ("", " \n"):
        with pytest.raises(UserError, match="the prompt is empty; write a question or give an image"):
            ask(engine, text)
        with pytest.raises(UserError, match="chat: the turn is empty"):
            engine.chat().say(text)
    with pytest.raises(UserError, match=r"prompt 1 \('nothing'\) is empty"):
        engine.generate([ask(engine, "hi"), Sample.from_ids([], key="nothing")])
    assert engine.generate([ask(engine, "", [picture()])], SHORT)[0].text, "a picture alone is a prompt"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_damaged_weights_are_one_clear_line(bad: float) -> None:
    net = make_net()
    with torch.no_grad():
        net.get_parameter("backbone.layers.1.o.text.weight")[3, 3] = bad
    engine = make_engine(net)
    with pytest.raises(UserError, match=r"prompt 0 \('hi'\): the model's logits are NaN or infinite"):
        engine.generate([ask(engine, "hi")], SHORT)


def test_bad_options_are_one_clear_line() -> None:
    for option in ("prefill_chunk", "max_context"):
        with pytest.raises(UserError, match=f"engine: {option}=0 must be at least 1"):
            make_engine(**{option: 0})
    engine = make_engine()
    with pytest.raises(UserError, match="3 sampling params for 1 prompts"):
        engine.generate([ask(engine, "hi")], [SHORT] * 3)
    with pytest.raises(UserError, match="chat: max_tiles=0"):
        engine.chat(max_tiles=0)


def test_a_model_with_a_shared_router_is_an_engine_too() -> None:
    """The dense baseline: its plan has one expert."""
    engine = make_engine(tiny_net({}, backbone=tiny_llama(vocab_size=264)))
    prompts = ragged(engine)
    assert engine.generate(prompts, SHORT) == [engine.generate([prompt], SHORT)[0] for prompt in prompts]
