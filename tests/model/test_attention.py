"""Who sees whom, and that a cache changes nothing (P12, P20)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmframe.batch import COLUMNS, Batch, Sample
from mmframe.cache import KVCache
from mmframe.errors import UserError
from mmframe.generation import generate, prefill
from mmframe.kinds import TokenKind
from mmframe.model import MultimodalLM
from tests.helpers import (
    ALL_SITES,
    QKV_FFN,
    all_hidden,
    all_logits,
    batch,
    mixed_batch,
    row,
    tiny_internlm2,
    tiny_llama,
    tiny_net,
)

MASKS = pytest.mark.parametrize("attention", ["causal", "image_bidirectional"])
CLOSE: dict[str, Any] = dict(atol=2e-5, rtol=1e-5)


def make(attention: str = "causal", sites: dict[str, str] | None = None) -> MultimodalLM:
    return tiny_net(sites or QKV_FFN, backbone=tiny_llama(attention=attention), distinct=True)


def cut(sample: Sample, first: int, end: int) -> Sample:
    """Tokens first..end of a row with the tiles of its slots; images count from 0 again."""
    columns = {name: getattr(sample, name)[first:end] for name in COLUMNS}
    is_slot = columns["blocks"] >= 0
    if not bool(is_slot.any()):
        return Sample(key=sample.key, **columns, tiles=sample.tiles[:0])
    tiles = columns["tile_index"][is_slot].unique().long()
    for name in ("blocks", "tile_index"):
        columns[name] = torch.where(is_slot, columns[name] - columns[name][is_slot].min(), -1)
    return Sample(key=sample.key, **columns, tiles=sample.tiles[tiles])


def in_chunks(net: MultimodalLM, sample: Sample, ends: list[int]) -> Tensor:
    """Logits of all positions, the row given piece by piece over a cache."""
    cache = net.backbone.new_cache(1, len(sample))
    starts = [0, *ends]
    pieces = [cut(sample, a, b) for a, b in zip(starts, [*ends, len(sample)], strict=True)]
    return torch.cat([all_logits(net, piece, cache=cache) for piece in pieces])


def with_token(sample: Sample, place: int) -> Sample:
    ids = sample.ids.clone()
    ids[place] = (ids[place] + 7) % 60 + 3
    return replace(sample, ids=ids)


def with_tile(sample: Sample, tile: int) -> Sample:
    tiles = sample.tiles.clone()
    tiles[tile] += 1.0
    return replace(sample, tiles=tiles)


def moved(net: MultimodalLM, before: Sample, after: Sample) -> Tensor:
    """Largest change of each position's hidden state, exactly 0 where there is none."""
    return (all_hidden(net, before) - all_hidden(net, after)).abs().amax(dim=1)


# ---- masks


@MASKS
def test_no_token_sees_a_later_word(attention: str) -> None:
    check_causal(attention)


def check_causal(attention: str, pattern: str = "ttt[i]tttt") -> None:
    """Changing a word moves it and all after it, and nothing before: exactly, at every place."""
    net, sample = make(attention), row(pattern)
    for place in (sample.kinds != TokenKind.IMAGE).nonzero().flatten().tolist():
        change = moved(net, sample, with_token(sample, place))
        assert not change[:place].any(), f"place {place} is seen by an earlier one"
        assert (change[place:] > 0).all(), f"place {place} is not seen by a later one"


def test_structured_rows_are_causal_too() -> None:
    """The same with the explicit mask that documents and branches need."""
    net, sample = make(), row("ttttt/tt")
    for place in range(5):
        change = moved(net, sample, with_token(sample, place))
        assert not change[:place].any() and (change[place:] > 0).all()


def test_slots_of_an_image_see_later_slots_only_when_bidirectional() -> None:
    """P12: 4 slots a tile, two tiles of one image at places 2..9; the second tile is changed."""
    sample = row("t[ii]tt")
    changed = with_tile(sample, 1)
    causal, both = (moved(make(attention), sample, changed) for attention in ("causal", "image_bidirectional"))
    assert not causal[:6].any() and (causal[6:] > 0).all()
    assert not both[:2].any() and (both[2:] > 0).all()


def test_slots_of_another_image_are_not_seen_early() -> None:
    sample = row("[i][i]t")
    change = moved(make("image_bidirectional"), sample, with_tile(sample, 1))
    assert not change[:7].any() and (change[7:] > 0).all()


def test_a_bidirectional_mask_without_images_is_causal() -> None:
    given = batch("ttt", "tttttt")
    assert torch.equal(all_logits(make("image_bidirectional"), given), all_logits(make("causal"), given))


@MASKS
def test_documents_of_a_row_do_not_see_one_another(attention: str) -> None:
    """Changing one document, a word or a picture, changes exactly nothing in the others (P9)."""
    net, sample = make(attention), row("tt[i]t|t[i]tt|ttt")
    for change in (with_token(sample, 0), with_tile(sample, 0)):
        assert not moved(net, sample, change)[sample.docs != 0].any()
    for change in (with_token(sample, 10), with_tile(sample, 1)):
        difference = moved(net, sample, change)
        assert not difference[sample.docs != 1].any() and difference[sample.docs == 1].any()


@MASKS
def test_packed_documents_equal_rows_of_their_own(attention: str) -> None:
    """P8, with the same words and pictures."""
    net, packed = make(attention), row("tt[i]t|t[ii]tt[i]|ttt")
    ends = [int((packed.docs <= doc).sum()) for doc in range(3)]
    alone = [cut(packed, *span) for span in zip([0, *ends], ends, strict=False)]
    expected = torch.cat([all_logits(net, one) for one in alone])
    torch.testing.assert_close(all_logits(net, packed), expected, **CLOSE)


@MASKS
def test_branches_see_the_trunk_and_not_one_another(attention: str) -> None:
    net, sample = make(attention), row("t[i]/ttt/tt/tttt")
    for branch in (1, 2, 3):
        mine = sample.branches == branch
        first = int(mine.nonzero()[0])
        change = moved(net, sample, with_token(sample, first))
        assert not change[~mine].any() and (change[mine] > 0).all()
    assert (moved(net, sample, with_token(sample, 0)) > 0).all()


@MASKS
def test_questions_that_share_an_image_equal_rows_of_their_own(attention: str) -> None:
    net, shared = make(attention), row("tt[i]t/ttt/tt/ttttt")
    together = all_logits(net, shared)
    for branch in (1, 2, 3):
        mine = (shared.branches == 0) | (shared.branches == branch)
        kept = {name: getattr(shared, name)[mine] for name in COLUMNS}
        kept["branches"] = torch.zeros_like(kept["branches"])
        alone = Sample(key="", tiles=shared.tiles, **kept)
        assert alone.positions.tolist() == list(range(len(alone)))
        torch.testing.assert_close(all_logits(net, alone), together[mine], **CLOSE)


@MASKS
def test_rows_of_a_batch_do_not_depend_on_one_another(attention: str) -> None:
    """P43: batch size and order change nothing; the longest row makes padding for the others."""
    net = make(attention)
    samples = [row(p, seed=i) for i, p in enumerate(["t", "tt[i]t", "t[ii]ttt[i]t", "tttt", "i"])]
    together = all_logits(net, Batch.collate(samples))
    backwards = all_logits(net, Batch.collate(samples[::-1]))
    alone = [all_logits(net, sample) for sample in samples]
    torch.testing.assert_close(together, torch.cat(alone), **CLOSE)
    torch.testing.assert_close(backwards, torch.cat(alone[::-1]), **CLOSE)


def test_padding_cells_add_nothing_to_gradients() -> None:
    """A long neighbour puts padding behind a short row; the gradient is that of the rows alone."""
    net, rows = make(), [row("tTT"), row("tt[i]tttttttTT", seed=1)]

    def gradients(given: Batch) -> dict[str, Tensor]:
        net.zero_grad(set_to_none=True)
        net(given, logits_at=torch.arange(given.num_tokens)).logits.square().mean(1).sum().backward()
        return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}

    together, *alone = (gradients(Batch.collate(given)) for given in (rows, rows[:1], rows[1:]))
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[0][name] + alone[1][name], atol=1e-4, rtol=1e-4)


# ---- the cache (P20)

CUTS = {
    "one by one after the image": [8, 9, 10, 11, 12, 18, 19, 20, 21],
    "image in turn two": [11, 18],
    "prompt of one token": [1, 2, 10],
    "all at once": [],
}


@MASKS
@pytest.mark.parametrize("ends", CUTS.values(), ids=CUTS.keys())
def test_a_row_in_pieces_equals_the_row_at_once(attention: str, ends: list[int]) -> None:
    check_pieces(make(attention, ALL_SITES), ends)


def check_pieces(net: MultimodalLM, ends: list[int]) -> None:
    """Two images, the second in a later turn; every piece takes the way of a fresh forward."""
    sample = row("tt[i]ttttt[i]ttttt")
    torch.testing.assert_close(in_chunks(net, sample, ends), all_logits(net, sample), **CLOSE)


def test_a_piece_of_a_single_slot_goes_to_the_visual_expert() -> None:
    """Neither "a cache is there" nor "one token long" means text."""
    net = tiny_net(ALL_SITES, distinct=True, image_size=4)  # 4 px tiles of one token
    sample = row("tti[i]t", image_size=4, per_tile=1)
    pieces = in_chunks(net, sample, list(range(1, len(sample))))
    torch.testing.assert_close(pieces, all_logits(net, sample), **CLOSE)


@MASKS
def test_rows_of_different_lengths_continue_over_one_cache(attention: str) -> None:
    net = make(attention)
    samples = [row("tt[i]tttt", seed=1), row("tttttttttt[i]t", seed=2), row("[i]tt[i]tttttt", seed=3)]
    ends = (9, 4, 6)
    cache = net.backbone.new_cache(3, 20)
    first = [cut(s, 0, end) for s, end in zip(samples, ends, strict=True)]
    second = [cut(s, end, len(s)) for s, end in zip(samples, ends, strict=True)]
    parts = [all_logits(net, Batch.collate(p), cache=cache).split([len(s) for s in p]) for p in (first, second)]
    for sample, a, b in zip(samples, *parts, strict=True):
        torch.testing.assert_close(torch.cat([a, b]), all_logits(net, sample), **CLOSE)


def test_cutting_through_an_image_is_an_error() -> None:
    net, sample = make(), row("t[ii]t", key="torn")
    piece = replace(cut(sample, 0, 5), tiles=sample.tiles[:1])
    with pytest.raises(UserError, match="'torn': 3 image slots in the text, 4 visual tokens"):
        all_logits(net, piece, cache=net.backbone.new_cache(1, 20))


def test_a_cache_that_is_too_small_is_refused_before_anything_is_written() -> None:
    net = make()
    cache = net.backbone.new_cache(2, 5)
    with pytest.raises(UserError, match="row 1 would hold 6 tokens, capacity is 5"):
        all_logits(net, batch("tttt", "tttttt"), cache=cache)
    with pytest.raises(UserError, match="3 rows given, made for 2"):
        all_logits(net, batch("t", "t", "t"), cache=cache)
    assert cache.lengths == [0, 0] and not any(keys.any() for keys in cache.keys)


def generated(net: MultimodalLM, samples: list[Sample], new: int) -> list[list[int]]:
    """Greedy ids without a cache: the whole row again for each token."""
    made = []
    for sample in samples:
        tail: list[int] = []
        for _ in range(new):
            grown = row_with(sample, tail)
            tail.append(int(all_logits(net, grown)[-1].argmax()))
        made.append(tail)
    return made


def row_with(sample: Sample, ids: list[int]) -> Sample:
    def grow(column: Tensor, value: int | list[int]) -> Tensor:
        values = value if isinstance(value, list) else [value] * len(ids)
        return torch.cat([column, torch.tensor(values, dtype=column.dtype)])

    start = int(sample.positions[-1]) + 1
    return replace(
        sample,
        ids=grow(sample.ids, ids),
        kinds=grow(sample.kinds, TokenKind.TEXT),
        labels=grow(sample.labels, -100),
        positions=grow(sample.positions, list(range(start, start + len(ids)))),
        docs=grow(sample.docs, 0),
        branches=grow(sample.branches, 0),
        **{name: grow(getattr(sample, name), -1) for name in ("blocks", "tile_index", "tile_row", "tile_column")},
    )


PROMPTS = ["tt[i]t", "t", "ttttt[i]tt[i]", "ttttttt"]


@MASKS
def test_generation_equals_running_the_whole_row_for_each_token(attention: str) -> None:
    net, prompts = make(attention), [row(p, seed=i) for i, p in enumerate(PROMPTS)]
    assert generate(net, prompts, 8).ids == generated(net, prompts, 8)


def test_rows_that_stop_leave_the_batch_and_change_nothing() -> None:
    net, prompts = make(), [row(p, seed=i) for i, p in enumerate(PROMPTS)]
    free = generate(net, prompts, 8).ids
    stops = {free[0][2], free[2][5]}
    expected = [ids[: next((i for i, token in enumerate(ids) if token in stops), 8)] for ids in free]
    assert len({len(ids) for ids in expected}) > 1, "the rows must stop at different steps for this to test anything"
    assert generate(net, prompts, 8, stop_ids=tuple(stops)).ids == expected
    assert generate(net, prompts, 8, stop_ids=tuple(stops), want_scores=True).scores is not None


@MASKS
def test_questions_over_a_shared_prefix_equal_prompts_of_their_own(attention: str) -> None:
    net = make(attention)
    trunks = [row("tt[i]t", seed=1), row("[ii]ttt", seed=2)]
    questions = [(0, "tt"), (1, "ttt"), (0, "t"), (0, "tttt[i]t")]
    continuations = [row(pattern, seed=10 + i) for i, (_, pattern) in enumerate(questions)]
    for (trunk, _), rest in zip(questions, continuations, strict=True):
        rest.positions += len(trunks[trunk])
    whole = [joined(trunks[trunk], rest) for (trunk, _), rest in zip(questions, continuations, strict=True)]
    prefix = prefill(net, trunks, capacity=40)
    forked = prefix.select([trunk for trunk, _ in questions])
    assert generate(net, continuations, 6, prefix=forked).ids == generate(net, whole, 6).ids
    # the prefix is as it was, so that it can be asked again
    again = prefix.select([trunk for trunk, _ in questions])
    assert generate(net, continuations, 6, prefix=again).ids == generated(net, whole, 6)


def joined(first: Sample, second: Sample) -> Sample:
    """One row of two; the positions of the second go on already."""
    return replace(Sample.packed([first, second]), docs=torch.zeros(len(first) + len(second), dtype=torch.int32))


# ---- dynamic NTK: the rotary base depends on the length


def long_net(num_layers: int, max_positions: int = 12) -> MultimodalLM:
    return tiny_net(QKV_FFN, backbone=tiny_internlm2(num_layers=num_layers, max_positions=max_positions), distinct=True)


def test_up_to_the_trained_context_pieces_equal_the_whole() -> None:
    check_pieces(long_net(3, max_positions=30), CUTS["image in turn two"])


def test_beyond_the_trained_context_cached_keys_turn_with_the_new_base() -> None:
    """One layer: what is cached depends on nothing but the token, so pieces must equal the whole exactly there."""
    net = long_net(1)
    sample = row("tt[i]ttttt[i]ttttt")
    assert net.backbone.new_cache(1, len(sample)).raw_keys and not net.backbone.new_cache(1, 12).raw_keys
    for ends in CUTS.values():
        whole = torch.stack([all_logits(net, cut(sample, 0, n))[-1] for n in (*ends, len(sample))])
        last = [n - 1 for n in (*ends, len(sample))]
        torch.testing.assert_close(in_chunks(net, sample, ends)[last], whole, **CLOSE)


def test_the_rotary_base_of_a_row_is_its_own_business() -> None:
    """A neighbour beyond the trained context must not turn the keys of a short row (P43)."""
    net = long_net(2)
    short, long = row("tt[i]t", seed=1), row("t" * 30, seed=2)
    together = all_logits(net, Batch.collate([short, long]))
    torch.testing.assert_close(together, torch.cat([all_logits(net, short), all_logits(net, long)]), **CLOSE)


def test_the_table_of_a_cache_says_what_each_column_holds() -> None:
    net = make()
    cache: KVCache = prefill(net, [row("t[i]t"), row("tt")], capacity=8)
    assert cache.kinds.tolist() == [[0, 2, 1, 1, 1, 1, 2, 0], [0, 0] + [int(TokenKind.PAD)] * 6]
    assert cache.lengths == [8, 2] and cache.num_images == [1, 0]


def test_mixed_batches_are_covered_by_the_default_mask_too() -> None:
    """A batch without structure builds no mask at all, and gives what the explicit mask gives."""
    net, given = make(), mixed_batch()
    masked = replace(given, doc_branched=torch.ones_like(given.doc_branched))
    torch.testing.assert_close(all_logits(net, given), all_logits(net, masked), **CLOSE)
