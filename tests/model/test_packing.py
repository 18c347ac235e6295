"""Documents that share a row: isolated exactly, equal to rows of their own, and at no other price (P8, P9, P10)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import hypothesis
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from mmframe.batch import IGNORE, Batch, Sample
from mmframe.errors import UserError
from mmframe.kinds import TokenKind
from mmframe.layout import Layout
from mmframe.length_groups import CALL, MAX_GROUPS, length_groups
from mmframe.model import MultimodalLM
from mmframe.objectives import NextToken
from mmframe.processing import ByteTokenizer, ChatProcessor
from tests.helpers import (
    QKV_FFN,
    all_hidden,
    all_logits,
    batch,
    loss_and_gradients,
    row,
    tiny_embedder,
    tiny_internlm2,
    tiny_llama,
    tiny_net,
)
from tests.model.test_attention import MASKS, cut, with_tile, with_token

SEVERAL = settings(max_examples=12, deadline=None)

WORDS = st.text("tT", max_size=9).map(lambda words: "t" + words)  # a first word is never supervised
IMAGES = st.sampled_from(["[i]", "[ii]", "[i]t[i]", "[ii]t[i]tt[i]"])
WITH_IMAGE = st.builds(lambda a, image, b: a + image + b, WORDS, IMAGES, WORDS)
BRANCHED = st.builds(lambda trunk, questions: "/".join([trunk, *questions]), WITH_IMAGE, st.lists(WORDS, min_size=2))
DOCUMENTS = st.lists(st.one_of(WORDS, WITH_IMAGE, BRANCHED), min_size=1, max_size=7)
EXAMPLE = "tTTtt|t[i]tTT|t|t[ii]t[i]tT|[i]t/tTT/tTTTT|tttttttTTTTTTT|tTTTTt"
"""Text, an image, one word, several images, questions that share an image, a long text, a text as long as the first."""


def make(attention: str) -> MultimodalLM:
    return tiny_net(QKV_FFN, backbone=tiny_llama(attention=attention), distinct=True)


def spans(sample: Sample) -> Iterator[tuple[int, int]]:
    """First and end of each document."""
    return pairwise([0, *(int((sample.docs <= doc).sum()) for doc in sample.docs.unique())])


def layout_of(net: MultimodalLM, given: Batch) -> Layout:
    return Layout.build(given, net.router.plan(given.kinds), net.backbone, torch.float32)


# ---- which documents share a grid


LENGTHS = st.lists(st.integers(1, 700), min_size=1, max_size=60)


def work(lengths: Tensor, groups: list[Tensor]) -> int:
    return sum(len(group) * int(lengths[group].max()) ** 2 + CALL for group in groups)


@hypothesis.given(LENGTHS, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_every_sequence_is_in_one_group_and_groups_do_not_mix(given: list[int], random: object) -> None:
    lengths, masked = torch.tensor(given), torch.tensor([random.random() < 0.4 for _ in given])  # type: ignore
    groups = length_groups(lengths, masked)
    assert sorted(torch.cat(groups).tolist()) == list(range(len(given)))
    assert len(groups) <= MAX_GROUPS and all(len(masked[group].unique()) == 1 for group in groups)
    assert all(bool((group.diff() > 0).all()) for group in groups)
    again = length_groups(lengths.clone(), masked.clone())
    assert [group.tolist() for group in again] == [group.tolist() for group in groups]
    order = torch.tensor(random.sample(range(len(given)), len(given)))  # type: ignore[attr-defined]
    others = length_groups(lengths[order], masked[order])
    assert [sorted(lengths[order][g].tolist()) for g in others] == [sorted(lengths[g].tolist()) for g in groups]


@hypothesis.given(st.lists(st.integers(1, 400), min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_no_other_split_is_less_work(given: list[int]) -> None:
    lengths = torch.tensor(given)
    least = min(work(lengths, [torch.tensor(p) for p in parts]) for parts in partitions(list(range(len(given)))))
    assert work(lengths, length_groups(lengths, torch.zeros(len(given), dtype=torch.bool))) == least


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    for parts in partitions(items[1:]):
        yield [[items[0]], *parts]
        for number in range(len(parts)):
            yield [*parts[:number], [items[0], *parts[number]], *parts[number + 1 :]]


@pytest.mark.parametrize("tokens", [4096, 16384])
@pytest.mark.parametrize("seed", range(4))
def test_padding_costs_less_than_a_third(tokens: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(50, 701, (tokens // 375,), generator=generator)
    groups = length_groups(lengths, torch.zeros(len(lengths), dtype=torch.bool))
    padded = sum(len(group) * int(lengths[group].max()) ** 2 for group in groups)
    assert padded < 1.3 * int(lengths.square().sum())


@pytest.mark.parametrize("patterns", [["tttt"] * 5, ["t[i]t"] * 3, ["tt|tt|tt", "tt"]], ids=str)
def test_equal_lengths_are_one_grid_without_padding(patterns: list[str]) -> None:
    layout = layout_of(make("causal"), batch(*patterns))
    assert len(layout.groups) == 1 and layout.holes is None
    assert layout.direct == ("i" not in patterns[0]), "a batch of one kind is not even gathered"


@hypothesis.given(st.lists(DOCUMENTS, min_size=1, max_size=4))
@SEVERAL
def test_every_token_has_one_cell_and_padding_is_of_its_own_document(rows: list[list[str]]) -> None:
    given = batch(*("|".join(documents) for documents in rows))
    net = make("causal")
    layout, plan = layout_of(net, given), net.router.plan(given.kinds)
    assert torch.equal(layout.to_grid[layout.from_grid], torch.arange(given.num_tokens))
    cells = sum(group.cells for group in layout.groups)
    holes = torch.zeros(0, dtype=torch.int64) if layout.holes is None else layout.holes
    assert cells == given.num_tokens + len(holes)
    assert sorted([*layout.from_grid.tolist(), *holes.tolist()]) == list(range(cells))
    document_T = plan.sort(torch.arange(len(given.doc_lengths)).repeat_interleave(given.doc_lengths))
    at = 0
    for group in layout.groups:
        grid = document_T[layout.to_grid[at : at + group.cells]].view(group.num_rows, group.length)
        assert bool((grid == grid[:, :1]).all())
        at += group.cells


def test_masks_are_made_for_branches_and_bidirectional_images_alone() -> None:
    given = batch("t" * 300 + "|" + "t" * 300 + "|t[i]t/ttt/tt|t[ii]t")
    for attention, masked in (("causal", [13]), ("image_bidirectional", [13, 12])):
        groups = layout_of(make(attention), given).groups
        assert sum(g.num_rows for g in groups if g.mask is not None) == len(masked)
        assert max(g.length for g in groups if g.mask is not None) == max(masked)


def test_documents_out_of_order_are_refused() -> None:
    with pytest.raises(UserError, match="sample 'mixed': the documents of a row stand one after another"):
        Batch.collate([row("tt"), Sample.from_ids([5, 6, 7], docs=[0, 1, 0], key="mixed")])


# ---- packed equals alone (P8)


@MASKS
@hypothesis.given(DOCUMENTS)
@SEVERAL
def test_packed_documents_equal_rows_of_their_own(attention: str, documents: list[str]) -> None:
    check_packed(make(attention), row("|".join(documents)))


def check_packed(net: MultimodalLM, packed: Sample) -> None:
    alone = torch.cat([all_logits(net, cut(packed, *span)) for span in spans(packed)])
    torch.testing.assert_close(all_logits(net, packed), alone, atol=1e-5 * float(alone.abs().max()), rtol=0)


def test_packed_documents_turn_by_their_own_length() -> None:
    """Dynamic NTK: 12 trained positions, 46 tokens in the row, of which one document alone is longer than 12."""
    net = tiny_net(QKV_FFN, backbone=tiny_internlm2(max_positions=12), distinct=True)
    check_packed(net, row("tt[i]t|ttttttttttttttttttttt|tttttttttt"))


@MASKS
def test_a_packed_row_is_its_documents_in_a_batch_to_the_last_bit(attention: str) -> None:
    net = make(attention)
    rows = [row(pattern, seed=seed) for seed, pattern in enumerate(EXAMPLE.split("|"))]
    packed, apart = Batch.collate([Sample.packed(rows)]), Batch.collate(rows)
    assert torch.equal(all_logits(net, packed), all_logits(net, apart))
    (loss, gradients), (other_loss, others) = (
        (loss, {name: g.clone() for name, g in gradients.items() if g is not None})
        for loss, gradients in (loss_and_gradients(net, given) for given in (packed, apart))
    )
    assert torch.equal(loss, other_loss) and gradients.keys() == others.keys()
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)


@MASKS
def test_one_row_or_many_documents_apart(attention: str) -> None:
    """The same documents over two rows give what they give in one."""
    net = make(attention)
    rows = [row(pattern, seed=seed) for seed, pattern in enumerate(EXAMPLE.split("|"))]
    one = all_logits(net, Sample.packed(rows))
    two = all_logits(net, Batch.collate([Sample.packed(rows[:3]), Sample.packed(rows[3:])]))
    assert torch.equal(one, two)


# ---- isolation (P9)


@MASKS
@hypothesis.given(DOCUMENTS, st.integers(0, 10**6))
@SEVERAL
def test_a_change_moves_its_own_document_alone(attention: str, documents: list[str], choice: int) -> None:
    check_isolated(make(attention), row("|".join(documents)), choice)


@MASKS
def test_a_change_in_any_document_moves_no_other(attention: str) -> None:
    net, sample = make(attention), row(EXAMPLE)
    for first, _ in spans(sample):
        check_isolated(net, sample, first)


def check_isolated(net: MultimodalLM, sample: Sample, choice: int) -> None:
    """Exactly nothing happens in other documents: to hidden states, and to the gradients of their loss."""
    place = choice % len(sample)
    if sample.kinds[place] == TokenKind.IMAGE:
        changed = with_tile(sample, int((sample.kinds[:place] == TokenKind.IMAGE).sum()) // 4)
    else:
        changed = with_token(sample, place)
    mine = sample.docs == sample.docs[place]
    before, after = all_hidden(net, sample), all_hidden(net, changed)
    assert torch.equal(before[~mine], after[~mine]) and not torch.equal(before[mine], after[mine])
    only_others = torch.where(mine, IGNORE, sample.labels)
    gradients = []
    for given in (sample, changed):
        gradients.append(gradients_of_others(net, replace(given, labels=only_others)))
        assert not gradients[-1]["embedded"][mine].any(), "the loss of other documents reaches this one"
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def gradients_of_others(net: MultimodalLM, sample: Sample) -> dict[str, Tensor]:
    """Gradients of the layers' weights, and of what goes into them."""
    net.zero_grad(set_to_none=True)
    given = Batch.collate([sample])
    embedded = net.embed(given).detach().requires_grad_()
    net(given, logits_at=given.supervised, embedded_TD=embedded).logits.square().sum().backward()
    assert embedded.grad is not None
    return {"embedded": embedded.grad} | {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


@MASKS
@pytest.mark.parametrize("training", [True, False])
def test_numbers_that_are_none_stay_in_their_document(attention: str, training: bool) -> None:
    check_poison(attention, training)


def check_poison(attention: str, training: bool = True) -> None:
    """Not even padding has anything of a neighbour: 0 times NaN would be NaN."""
    net, given = make(attention), Batch.collate([row(EXAMPLE)])
    embedded = net.embed(given).detach()
    with torch.set_grad_enabled(training):
        before = net(given, torch.arange(given.num_tokens), embedded_TD=embedded).logits
        for doc in range(int(given.docs.max()) + 1):
            poisoned = embedded.clone()
            poisoned[given.docs == doc] = torch.nan
            after = net(given, torch.arange(given.num_tokens), embedded_TD=poisoned).logits
            assert torch.equal(before[given.docs != doc], after[given.docs != doc])
            assert after[given.docs == doc].isnan().all()


# ---- labels (P10)


def test_labels_of_a_pack_never_cross_documents_and_never_ask_for_an_image() -> None:
    processor, embedder = ChatProcessor(ByteTokenizer()), tiny_embedder()
    tiles = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    turns = [
        {"from": "human", "value": "<image>\nwhat is it?"},
        {"from": "gpt", "value": "a cat"},
        {"from": "human", "value": "and this? <image>"},
        {"from": "gpt", "value": "a dog"},
    ]
    rows = [
        processor.encode(turns, [tiles, tiles[:1]], embedder, max_tiles=4),
        processor.encode_branches([("what?", "one"), ("where?", "two words")], [tiles], embedder, max_tiles=2),
        processor.encode_text("nothing but text"),
        processor.encode(turns[2:], [tiles[:1]], embedder, max_tiles=1),
    ]
    packed = Sample.packed(rows)
    assert packed.docs.unique().tolist() == [0, 1, 2, 3] and int((packed.labels != IGNORE).sum()) > 30
    for place in (packed.labels != IGNORE).nonzero().flatten().tolist():
        assert packed.labels[place] == packed.ids[place + 1]
        assert packed.docs[place] == packed.docs[place + 1] and packed.branches[place] == packed.branches[place + 1]
        assert packed.kinds[place + 1] == TokenKind.TEXT
    for _, end in spans(packed):
        assert packed.labels[end - 1] == IGNORE


# ---- rows and batches without tokens


@MASKS
def test_empty_rows_change_nothing(attention: str) -> None:
    net = make(attention)
    rows = [row(pattern, seed=seed) for seed, pattern in enumerate(["tTT", "t[i]tT"])]
    nothing = Sample.packed([])
    with_nothing = Batch.collate([nothing, rows[0], nothing, rows[1], nothing])
    assert torch.equal(all_logits(net, with_nothing), all_logits(net, Batch.collate(rows)))


@MASKS
def test_a_batch_without_tokens_gives_every_parameter_a_gradient_of_zero(attention: str) -> None:
    """A rank whose records were all left out steps with the others."""
    net, given = make(attention), Batch.collate([Sample.packed([]), Sample.packed([])])
    total, weight = NextToken()(net, given)
    assert total == weight == 0
    loss, gradients = loss_and_gradients(net, given)
    assert loss == 0
    assert all(gradient is not None and not gradient.any() for gradient in gradients.values())
    with torch.no_grad():
        assert net(given).logits.shape == (0, 64)
