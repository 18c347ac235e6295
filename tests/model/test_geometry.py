"""Prefix masks and rotary positions of images: what they are, and that no way of running a row changes them."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import settings
from torch import Tensor

from components.backbones.gemma import Gemma
from components.backbones.qwen import Qwen3
from components.backbones.rope import Rope
from mmframe import layout as layout_file
from mmframe.batch import COLUMNS, IGNORE, Batch, Sample
from mmframe.errors import UserError
from mmframe.generation import Step, generate, prefill, run_prompts
from mmframe.geometry import ATTENTION, FACTS, POSITIONS, rotary_positions
from mmframe.kinds import TokenKind
from mmframe.layout import Layout
from mmframe.model import MultimodalLM
from mmframe.processing import ByteTokenizer, ChatProcessor
from tests.helpers import QKV_FFN, all_logits, batch, row, tiny_embedder, tiny_internlm2, tiny_llama, tiny_net
from tests.model.engines import make_engine, make_net
from tests.model.test_attention import PROMPTS, cut, generated, in_chunks, make, moved, with_token
from tests.model.test_engine_chat import SHORT, TURNS, check_turns
from tests.model.test_engine_static import check_static
from tests.model.test_packing import DOCUMENTS, check_isolated, check_packed
from tests.model.test_packing import make as packing_net

CLOSE: dict[str, Any] = dict(atol=2e-5, rtol=1e-5)
NEW = [(mask, turns) for mask in ATTENTION for turns in POSITIONS if mask == "prefix" or turns != "linear"]
"""What the tests of masks and caches do not run over already."""
GEOMETRIES = pytest.mark.parametrize(("attention", "positions"), NEW)
TURNING = pytest.mark.parametrize("positions", POSITIONS)


# ---- positions


def facts(sample: Sample, *more: str) -> Tensor:
    return torch.stack([getattr(sample, name).long() for name in (*FACTS, *more)])[:, None]


def shared(sample: Sample) -> list[int]:
    return rotary_positions(facts(sample), "shared")[0].tolist()


def grid(sample: Sample) -> list[tuple[int, ...]]:
    made = rotary_positions(facts(sample, "tile_index", "tile_row", "tile_column"), "grid")
    return [tuple(places) for places in made[:, 0].T.tolist()]


def native(sample: Sample) -> list[tuple[int, ...]]:
    made = rotary_positions(facts(sample, "tile_index", "tile_row", "tile_column"), "native")
    return [tuple(places) for places in made[:, 0].T.tolist()]


def text(*places: int) -> list[tuple[int, int, int]]:
    return [(place, place, place) for place in places]


def tile(start: int, rows: int = 2, columns: int = 2) -> list[tuple[int, int, int]]:
    return [(start, start + r, start + c) for r in range(rows) for c in range(columns)]


def test_all_slots_of_an_image_share_a_position() -> None:
    assert shared(row("tt[i]tt")) == [0, 1, 2, 3, 3, 3, 3, 4, 5, 6]
    assert shared(row("[ii]t")) == [0, *[1] * 8, 2, 3]
    assert shared(row("ii")) == [0] * 8 and shared(row("ttt")) == [0, 1, 2]


def test_slots_stand_on_the_grid_of_their_tile_and_text_goes_on_behind_it() -> None:
    assert grid(row("tt[i]t")) == text(0, 1, 2) + tile(3) + text(5, 6)
    assert grid(row("[ii]t")) == text(0) + tile(1) + tile(3) + text(5, 6)
    assert grid(row("[iq]t")) == text(0) + tile(1) + text(3, 4, 5), "a query has no place on the grid"
    assert grid(row("ii")) == tile(0) + tile(2) and grid(row("ttt")) == text(0, 1, 2)


def test_native_slots_share_their_time_and_count_rows_and_columns_from_nothing() -> None:
    """NEO's released code for "t<img>....</img>t"; further tiles are counted likewise."""
    first, second = ([(time, r, c) for r in (0, 1) for c in (0, 1)] for time in (2, 3))
    assert native(row("t[i]t")) == [(0, 0, 0), (1, 0, 0), *first, (3, 0, 0), (4, 0, 0)]
    assert native(row("t[ii]")) == [(0, 0, 0), (1, 0, 0), *first, *second, (4, 0, 0)]
    assert native(row("tt[iq")) == [(0, 0, 0), (1, 0, 0), (2, 0, 0), *[(3, r, c) for _, r, c in first], (4, 0, 0)]


def test_native_heads_change_nothing_at_first_but_where_images_stand() -> None:
    """Their keys are zero: what is left is the time, which is shared by the slots of a tile."""
    given = batch("t[i]tTT", "tTT")
    for options in ({}, {"head_dim": 12}):
        plain, wide = (tiny_llama(positions=positions, **options) for positions in ("shared", "native"))
        missing = wide.load_state_dict(plain.state_dict(), strict=False).missing_keys
        assert len(missing) == 6 and all("_hw.text." in name for name in missing)
        nets = [tiny_net({}, backbone=backbone) for backbone in (plain, wide)]  # roughened
        with torch.no_grad():
            for name, parameter in wide.named_parameters():
                parameter.copy_(plain.state_dict().get(name, 0.0 * parameter if ".k_hw." in name else parameter))
        torch.testing.assert_close(*(all_logits(net, given) for net in nets), **CLOSE)
        with torch.no_grad():
            wide.get_parameter("layers.0.k_hw.text.weight").add_(0.3)
        assert (all_logits(nets[1], given) - all_logits(nets[0], given)).abs().max() > 1e-3


def test_native_heads_have_norms_where_the_llm_has() -> None:
    made = Qwen3(**Qwen3.toy_args, positions="native")  # type: ignore[arg-type]
    assert made.get_parameter("layers.0.q_hw_norm.text.weight").shape == (2, 6)
    assert not made.get_parameter("layers.1.k_hw.text.weight").any()
    cache = made.new_cache(2, 5)
    assert cache.keys[0].shape == (2, 5, 2, 24) and cache.values[0].shape == (2, 5, 2, 12)


def test_a_wide_tile_is_as_long_as_its_longer_side_and_row_ends_are_part_of_it() -> None:
    """3 rows of 4 slots and a row end each, as the places of SOLO's embedder."""
    places = [(r, c) for r in range(3) for c in range(5)]
    sample = Sample.from_ids(
        [5] * 17,
        kinds=[0, *[1] * 15, 0],
        tile_row=[-1, *(r for r, _ in places), -1],
        tile_column=[-1, *(c for _, c in places), -1],
    )
    assert grid(sample) == text(0) + tile(1, rows=3, columns=5) + text(6)


def test_documents_start_anew_and_branches_go_on_from_their_trunk() -> None:
    sample = row("t[i]/tt/t|i/t|t/[i]t/t")
    assert shared(sample) == [0, 1, 2, 2, 2, 2, 3, 4, 5, 4, *[0] * 4, 1, 0, 1, 2, 2, 2, 2, 3, 4, 1]
    first, second = text(0, 1) + tile(2) + text(4, 5, 6, 5), tile(0) + text(2)
    assert grid(sample) == first + second + text(0, 1) + tile(2) + text(4, 5, 1)


def read_from_left_to_right(sample: Sample) -> list[tuple[int, ...]]:
    """The same rule, one token after another, for a row without branches."""
    made: list[tuple[int, ...]] = []
    following, start, doc, on = 0, 0, -1, -1
    for at, number, r, c in zip(sample.docs, sample.tile_index, sample.tile_row, sample.tile_column, strict=True):
        if at != doc:
            following, doc, on = 0, int(at), -1
        if r < 0 or number != on:
            start = following
        on = int(number) if r >= 0 else -1
        made.append((start, start + max(0, int(r)), start + max(0, int(c))))
        following = max(following, max(made[-1]) + 1)
    return made


@hypothesis.given(DOCUMENTS)
@settings(max_examples=15, deadline=None)
def test_a_row_read_from_left_to_right_has_the_same_places(documents: list[str]) -> None:
    sample = row("|".join(d.partition("/")[0] for d in documents))
    assert grid(sample) == read_from_left_to_right(sample)


def test_frequencies_turn_with_time_row_and_column_by_sections() -> None:
    check_places()
    assert tiny_llama(positions="grid", head_dim=128).sections == (16, 24, 24), "Qwen2-VL"


def check_places() -> None:
    rope, places = Rope(), torch.tensor([[3, 7], [5, 7], [11, 7]])
    cos_and_sin = rope.angles(places, torch.tensor(9), 16, (2, 3, 3))
    for number, angles in enumerate(cos_and_sin):
        axes = [rope.angles(axis, torch.tensor(9), 16)[number] for axis in places]
        for half in (0, 8):
            parts = [axes[0][:, half : half + 2], axes[1][:, half + 2 : half + 5], axes[2][:, half + 5 : half + 8]]
            assert torch.equal(angles[:, half : half + 8], torch.cat(parts, dim=1))


def test_positions_say_where_a_slot_stands() -> None:
    """Under `shared` the slots of a tile are told apart by their pixels alone, under the others by their place too."""
    sample, order = row("t[i]t"), [0, 1, 3, 2, 4, 5, 6, 7]  # the first two slots change places
    columns = {name: getattr(sample, name).clone() for name in COLUMNS}
    for positions, same in (("linear", False), ("shared", True), ("grid", False)):
        net = make("image_bidirectional", positions=positions)
        x = net.embed(Batch.collate([sample]))
        given = Batch.collate([Sample(key="", **columns, tiles=sample.tiles)])
        last = [net(given, torch.tensor([7]), embedded_TD=e).logits for e in (x, x[order])]
        assert torch.allclose(*last, **CLOSE) == same, positions


# ---- the prefix


def test_the_prompt_is_what_stands_in_front_of_the_first_answer() -> None:
    def first(pattern: str) -> list[int]:
        return row(pattern).prefix.long().tolist()

    assert first("t[i]tTTtTT") == [1] * 8 + [0] * 5
    assert first("tttt") == [1] * 4, "a row without labels is a prompt"
    assert first("tTTT") == [1, 0, 0, 0], "plain text: all but the first token is learnt"
    assert first("ttT|tt|tTt") == [1, 1, 0, 1, 1, 1, 0, 0]


def test_training_rows_and_prompts_agree_on_it() -> None:
    """Also over turns: the second question is no part of it, and a prompt that holds an answer knows that."""
    processor, embedder = ChatProcessor(ByteTokenizer()), tiny_embedder()
    tiles = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    turns = [("human", "what?"), ("gpt", "a cat"), ("human", "why?"), ("gpt", "so")]
    said = [{"from": who, "value": words} for who, words in turns]
    trained = processor.encode(said, [tiles], embedder)
    before = int((trained.labels != IGNORE).nonzero()[0]) + 1
    assert trained.prefix.tolist() == [True] * before + [False] * (len(trained) - before)
    first, second = (processor.encode_prompt(said[:n], [tiles], embedder) for n in (1, 3))
    assert len(first) == before and bool(first.prefix.all())
    assert torch.equal(second.prefix, trained.prefix[: len(second)])
    packed = Sample.packed([trained, trained])
    assert torch.equal(packed.prefix, torch.cat([trained.prefix] * 2))


def test_the_prompt_sees_all_of_itself_and_nothing_else_is_seen_early() -> None:
    check_prefix("t[i]ttTTtTT")
    check_prefix("tTTT")


def check_prefix(pattern: str) -> None:
    """Changing a word moves exactly what may see it, at every place."""
    net, sample = make("prefix"), row(pattern)
    end = int((sample.labels != IGNORE).nonzero()[0]) + 1
    for place in (sample.kinds != TokenKind.IMAGE).nonzero().flatten().tolist():
        change = moved(net, sample, with_token(sample, place))
        first = 0 if place < end else place
        assert not change[:first].any() and (change[first:] > 0).all(), place


def test_only_prompts_of_several_tokens_need_a_mask() -> None:
    net = packing_net("prefix")
    given = batch("tTTTTT|tTTTTT", "ttTTTT")
    layout = Layout.build(given, net.router.plan(given.kinds), net.backbone, torch.float32)
    assert [(g.num_rows, g.mask is None) for g in layout.groups] == [(1, False), (2, True)]


def test_questions_that_share_an_image_are_refused() -> None:
    with pytest.raises(UserError, match="'t.i./tT/tT': several questions share an image.*questions_per_image: 1"):
        all_logits(make("prefix"), batch("ttT", "t[i]/tT/tT"))


def test_a_prompt_that_goes_on_over_a_cache_is_refused() -> None:
    net, sample = make("prefix"), row("tt[i]tt", key="long")
    cache = net.backbone.new_cache(1, 12)
    all_logits(net, cut(sample, 0, 3), cache=cache)
    with pytest.raises(UserError, match="'long': its prompt goes on over a cache.*in one piece"):
        all_logits(net, cut(sample, 3, 9), cache=cache)
    assert cache.lengths == [3] and not (cache.table[:, :, 3:] != -1).any()
    all_logits(net, Sample.packed([row("t"), row("tt")]), cache=net.backbone.new_cache(1, 3))  # documents may follow


# ---- packs, caches, generation


@GEOMETRIES
@hypothesis.given(DOCUMENTS)
@settings(max_examples=3, deadline=None)
def test_packed_documents_equal_rows_of_their_own(attention: str, positions: str, documents: list[str]) -> None:
    if attention == "prefix":
        documents = [d.partition("/")[0] for d in documents]
    net = tiny_net(QKV_FFN, backbone=tiny_llama(attention=attention, positions=positions, num_layers=2), distinct=True)
    check_packed(net, row("|".join(documents)))


@GEOMETRIES
def test_documents_of_a_pack_are_isolated(attention: str, positions: str) -> None:
    check_isolated(make(attention, positions=positions), row("t[i]tTT|ttTTt|[ii]tT"), choice=4)


@pytest.mark.parametrize("positions", ["shared", "grid"])
@pytest.mark.parametrize("attention", ["causal", "image_bidirectional"])
def test_questions_that_share_an_image_equal_rows_of_their_own(attention: str, positions: str) -> None:
    net, sample = make(attention, positions=positions), row("tt[i]t/ttt/tt/t[i]ttt")
    together = all_logits(net, sample)
    for branch in (1, 2, 3):
        mine = (sample.branches == 0) | (sample.branches == branch)
        kept = {name: getattr(sample, name)[mine] for name in COLUMNS} | {"branches": torch.zeros(int(mine.sum()))}
        alone = Sample(key="", tiles=sample.tiles[: 1 + (branch == 3)], **kept)
        torch.testing.assert_close(all_logits(net, alone), together[mine], **CLOSE)


def test_a_window_counts_the_tokens_of_its_own_branch() -> None:
    """Other branches stand between a branch and its trunk, and take nothing of what it sees."""
    backbone = Gemma(**(Gemma.toy_args or {}) | {"window": 4})
    net, sample = tiny_net({}, backbone=backbone), row("tttt/ttt/ttttt")
    together = all_logits(net, sample)
    for branch in (1, 2):
        mine = (sample.branches == 0) | (sample.branches == branch)
        kept = {name: getattr(sample, name)[mine] for name in COLUMNS} | {"branches": torch.zeros(int(mine.sum()))}
        torch.testing.assert_close(all_logits(net, Sample(key="", tiles=sample.tiles, **kept)), together[mine], **CLOSE)


@GEOMETRIES
def test_a_row_in_pieces_equals_the_row_at_once(attention: str, positions: str) -> None:
    check_pieces(make(attention, positions=positions))


def check_pieces(net: MultimodalLM) -> None:
    """Pictures in the first and in a later turn, pieces of one token, and two documents; the cut is never in what sees
    later tokens."""
    sample = row("tt[i]ttTttt[i]tTtt|[ii]tTt[i]t")
    whole = all_logits(net, sample)
    first = int(sample.prefix[sample.docs == 0].sum())
    for ends in ([first, 14], [first, first + 1, first + 2, 24], [first, 20, 36]):
        torch.testing.assert_close(in_chunks(net, sample, ends), whole, **CLOSE)


@GEOMETRIES
@pytest.mark.parametrize("chunk", [1, 3])
def test_a_chunked_prefill_changes_nothing(attention: str, positions: str, chunk: int) -> None:
    """A chunk may end inside a tile."""
    net = make(attention, positions=positions)
    prompts = [row("tt[ii]ttTt[i]t", seed=1), row("tttt", seed=2), row("[i]", seed=3), row("tTt[i", seed=4)]
    caches = [net.backbone.new_cache(4, 24) for _ in range(2)]
    logits = [run_prompts(net, prompts, cache, size) for cache, size in zip(caches, (None, chunk), strict=True)]
    torch.testing.assert_close(*logits, **CLOSE)
    assert torch.equal(*(cache.table for cache in caches))
    for made, whole in zip(caches[1].positions.unbind(-2), caches[0].positions.unbind(-2), strict=True):
        assert torch.equal(made, whole)
    torch.testing.assert_close(*(Step(net, cache)([5, 6, 7, 8]) for cache in caches), **CLOSE)


@GEOMETRIES
def test_generation_equals_running_the_whole_row_for_each_token(attention: str, positions: str) -> None:
    check_steps(make(attention, positions=positions))


def check_steps(net: MultimodalLM) -> None:
    prompts = [row(pattern, seed=i) for i, pattern in enumerate([*PROMPTS, "tti", "tTt[i"])]
    assert generate(net, prompts, 5).ids == generated(net, prompts, 5)


@pytest.mark.parametrize("positions", ["shared", "grid"])
def test_questions_over_a_shared_prefix_go_on_behind_it(positions: str) -> None:
    net, whole = make(positions=positions), row("tt[ii]ttt[i]t")
    trunk, rest = cut(whole, 0, 13), cut(whole, 13, len(whole))
    fork = prefill(net, [trunk, row("ttt")], 30).select([1, 0, 0])
    assert fork.positions.shape[-2:] == (3, 30)
    asked = [row("t", seed=7), rest, rest]
    asked[0].positions += 3
    made = generate(net, asked, 4, prefix=fork).ids
    assert made[1] == made[2] == generate(net, [whole], 4).ids[0]


@GEOMETRIES
def test_the_static_step_equals_the_plain_one(attention: str, positions: str) -> None:
    check_static(make_net(attention, long=positions == "grid", positions=positions))


@pytest.mark.parametrize(
    ("attention", "positions", "chunk"), [("prefix", "grid", 7), ("causal", "shared", None), ("causal", "native", None)]
)
def test_a_conversation_equals_fresh_starts(
    attention: str, positions: str, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(make_net(attention, positions=positions), prefill_chunk=chunk)
    chat, watched = check_turns(engine, TURNS, monkeypatch)
    assert chat.reused > len(watched.prompts[0])


def test_a_first_prompt_that_changed_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of it has seen the old one."""
    engine = make_engine(make_net("prefix"))
    chat, watched = check_turns(engine, [("what is that? a", []), ("well", [])], monkeypatch)
    assert chat.reused > 0
    chat.history = []
    "".join(chat.say("what is that? b", (), SHORT))
    assert chat.reused == 0
    fresh = run_prompts(engine.net, watched.prompts[-1:], engine.net.backbone.new_cache(1, 99))
    torch.testing.assert_close(watched.logits[-1], fresh, **CLOSE)


@pytest.mark.parametrize("positions", ["shared", "grid"])
def test_beyond_the_trained_context_cached_keys_turn_with_the_new_base(positions: str) -> None:
    """Dynamic NTK over one layer, as in test_attention: keys are kept raw and turned by their places on reading."""
    backbone = tiny_internlm2(num_layers=1, max_positions=12, positions=positions)
    net, sample = tiny_net(QKV_FFN, backbone=backbone, distinct=True), row("tt[i]ttttt[i]ttttt")
    for ends in ([11, 18], [8, 9, 10, 11, 18, 19]):
        places = [n - 1 for n in (*ends, len(sample))]
        whole = torch.stack([all_logits(net, cut(sample, 0, n + 1))[-1] for n in places])
        torch.testing.assert_close(in_chunks(net, sample, ends)[places], whole, **CLOSE)


def test_the_usual_geometry_computes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Causal and linear: no mask, no facts, no positions but those of the data."""

    def never(*args: Any) -> Any:
        raise AssertionError("called")

    for name in ("rotary_positions", "facts_of", "may_attend", "next_positions"):
        monkeypatch.setattr(layout_file, name, never)
    net, given = packing_net("causal"), batch("t[i]tTT|ttT", "tTT")
    Layout.build(given, net.router.plan(given.kinds), net.backbone, torch.float32)


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "prefx"}, "attention='prefx' is not known; did you mean 'prefix'"),
        ({"positions": "2d"}, "positions='2d' is not known; .*linear, shared, grid, native"),
        ({"positions": "grid", "grid_sections": [2, 2, 2]}, r"grid_sections=\[2, 2, 2\].*head_dim / 2 = 4"),
        ({"positions": "grid", "grid_sections": [4, 0]}, "must be three numbers"),
        ({"positions": "native", "head_dim": 6}, "head_dim 6 is no multiple of 4"),
        ({"pre_layers": -1}, "pre_layers=-1 must be at least 0"),
        ({"pre_layers": 1, "pre_layers_init": "zero"}, "pre_layers_init='zero' is not known"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_llama(**options)
