"""What a row says of its slots: tile, place in the tile's grid, kind; from the picture to the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from components.patch_embedders.linear import LinearPatchEmbedder
from mmframe.batch import COLUMNS, Batch, Sample
from mmframe.data import MixtureData
from mmframe.data.prompts import prompts_of
from mmframe.data.sheet import pieces
from mmframe.dialogue import _rest
from mmframe.generation import part_of
from mmframe.kinds import TokenKind
from mmframe.processing.row import Tally
from mmframe.tile_tokens import TileGeometry, described
from tests.data.mixtures import Listed, pairs
from tests.data.support import embedder, picture, processor
from tests.helpers import row

KINDS = [TokenKind.BOUNDARY, 1, 1, TokenKind.BOUNDARY, 1, 1, TokenKind.BOUNDARY, TokenKind.QUERY]
PLACES = [(-1, -1), (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (-1, -1)]
RICH = TileGeometry(16, described(torch.tensor(KINDS), torch.tensor(PLACES)))
"""A class token, two rows of two with their ends, a query."""
TALK = [{"from": "human", "value": "a <image> b <image>"}, {"from": "gpt", "value": "yes"}]
PICTURES = [picture(), picture((64, 16))]  # of one tile; of four and a thumbnail


def encoded() -> Sample:
    return processor(image_start="<img>", image_end="</img>").encode(TALK, PICTURES, RICH, max_tiles=8)  # type: ignore


def slots_of(given: Sample | Batch) -> list[list[int]]:
    """Block, tile, row, column, kind of each slot."""
    at = given.blocks >= 0
    names = ("blocks", "tile_index", "tile_row", "tile_column", "kinds")
    return torch.stack([getattr(given, name)[at].int() for name in names], dim=1).tolist()


def expected(tiles: list[int], first_block: int = 0) -> list[list[int]]:
    """Of pictures of so many tiles."""
    blocks = [block for block, count in enumerate(tiles, first_block) for _ in range(count)]
    return [
        [block, tile, *place, int(kind)]
        for tile, block in enumerate(blocks)
        for place, kind in zip(PLACES, KINDS, strict=True)
    ]


def test_slots_are_what_the_embedder_says_of_its_tiles() -> None:
    sample = encoded()
    assert sample.image_tiles == (1, 5) and slots_of(sample) == expected([1, 5])
    outside = sample.blocks < 0
    for name in ("tile_index", "tile_row", "tile_column"):
        assert getattr(sample, name).dtype == torch.int32 and (getattr(sample, name)[outside] == -1).all()
    marks = (sample.kinds == TokenKind.BOUNDARY) & outside
    assert int(marks.sum()) == 4, "the processor's own markers are no slots"
    assert torch.equal(sample.positions, torch.arange(len(sample)))


def test_counting_makes_the_same_lengths() -> None:
    sample = encoded()
    made = processor(image_start="<img>", image_end="</img>")
    tally = made.row(TALK, [1, 5], RICH, 8, kind=Tally)  # type: ignore[arg-type]
    assert (tally.tokens, tally.image_tokens, tally.num_tiles) == (len(sample), 6 * len(KINDS), 6)


def test_an_option_that_changes_the_number_of_tokens_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    every: list[dict[str, Any]] = [{}, {"row_end": True}, {"num_queries": 5}, {}]
    measured = []
    for options in every:
        data = MixtureData({"p": Listed(pairs(tmp_path, 6))}, max_tokens=200, max_tiles=2)
        data.connect(processor(), LinearPatchEmbedder(32, image_size=16, patch_size=8, **options))
        rows: Any = data.train_rows
        measured.append(int(rows.parts[0].lengths.tokens.sum()))
        assert measured[-1] == sum(len(rows.sample(0, index)) for index in range(len(rows)))
    tiles = int(rows.parts[0].lengths.tiles.sum())
    assert [count - measured[0] for count in measured] == [0, 2 * tiles, 5 * tiles, 0]
    assert len(list((tmp_path / "cache" / "mmframe" / "lengths").iterdir())) == 3


def test_a_contact_sheet_shows_all_slots_of_a_picture_as_one() -> None:
    drawn = [piece.text for piece in pieces(encoded(), 0, processor())]
    assert [text for text in drawn if "image tokens" in text] == ["8 image tokens", "40 image tokens"]


def test_packing_and_batching_count_tiles_on() -> None:
    sample = encoded()
    packed = Sample.packed([sample, row("tt"), sample])
    assert slots_of(packed) == expected([1, 5, 1, 5])
    batch = Batch.collate([packed, sample])
    assert slots_of(batch) == expected([1, 5, 1, 5]) + expected([1, 5]), "tiles are counted within a row"
    assert torch.equal(batch.image_slots, (batch.blocks >= 0).nonzero().flatten())
    assert {int(kind) for kind in batch.kinds[batch.image_slots]} == {1, 2, 3}


def test_prompts_keep_their_tiles() -> None:
    tokenizer = processor().tokenizer
    packed = Sample.packed([encoded(), replace(encoded(), tiles=encoded().tiles + 1)])
    second = prompts_of(packed, tokenizer)[1].sample
    assert slots_of(second) == expected([1, 5], first_block=2)
    assert torch.equal(second.tiles, packed.tiles[6:])


def test_pieces_of_a_prompt_keep_their_columns() -> None:
    sample = encoded()
    pieces = [part_of(sample, 0, 20), part_of(sample, 20, len(sample))]
    for name in COLUMNS:
        assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(sample, name))


def test_the_rest_of_a_conversation_counts_its_own_tiles() -> None:
    sample = encoded()
    start = int((sample.blocks == 1).nonzero()[0])
    rest = _rest(sample, start, sample.tiles.split([1, 5]))
    assert slots_of(rest) == expected([5]) and len(rest.tiles) == 5


def test_rows_by_hand_share_their_slots_among_their_tiles() -> None:
    given = Sample.from_ids([1] * 9, kinds=[0, 1, 1, 1, 1, 0, 1, 1, 0], tiles=torch.zeros(3, 3, 8, 8))
    assert given.tile_index.tolist() == [-1, 0, 0, 1, 1, -1, 2, 2, -1]
    assert given.tile_row.tolist() == given.tile_column.tolist() == [-1] * 9
    assert Sample.from_ids([1] * 3, kinds=[1, 0, 1]).tile_index.tolist() == [0, -1, 1]
    grid = row("t[ii]")
    assert grid.tile_index.tolist() == [-1, -1, 0, 0, 0, 0, 1, 1, 1, 1, -1]
    assert grid.tile_row.tolist() == [-1, -1, 0, 0, 1, 1, 0, 0, 1, 1, -1]
    assert grid.tile_column.tolist() == [-1, -1, 0, 1, 0, 1, 0, 1, 0, 1, -1]


def test_a_plain_embedder_gives_a_plain_grid() -> None:
    sample = processor().encode(TALK[:2], PICTURES, embedder(16, 3), max_tiles=2)
    at = sample.blocks >= 0
    assert sample.tile_column[at].tolist() == [0, 1, 2] * len(sample.tiles) and (sample.kinds[at] == 1).all()
