"""What every patch embedder promises."""

from __future__ import annotations

import pytest
import torch

from mmframe.contracts import (
    PatchEmbedder,
)
from mmframe.errors import UserError
from mmframe.kinds import TokenKind
from tests.contracts.support import NO_GRADIENT, every, make, make_rough

TILE_SIZES = [(1, 1), (1, 2), (2, 1), (3, 2), (4, 4)]
"""Edges in units of the smallest square that makes whole tokens."""


def smallest_square(embedder: PatchEmbedder) -> int:
    def fits(edge: int) -> bool:
        try:
            return embedder.num_tokens(edge, edge) > 0
        except UserError:
            return False

    return next(edge for edge in range(1, embedder.image_size + 1) if fits(edge))


@every("patch_embedder")
@torch.no_grad()
def test_patch_embedder_knows_its_number_of_tokens_without_running(cls: type) -> None:
    embedder = make_rough(cls)
    unit = smallest_square(embedder)
    sizes = [(embedder.image_size, embedder.image_size), *((unit * a, unit * b) for a, b in TILE_SIZES)]
    for height, width in sizes:
        tokens = embedder(torch.randn(2, 3, height, width))
        assert tokens.shape == (2 * embedder.num_tokens(height, width), embedder.hidden_size), (height, width)
        assert tokens.isfinite().all()


@every("patch_embedder")
def test_patch_embedder_says_what_its_tokens_are(cls: type) -> None:
    embedder = make(cls)
    unit = smallest_square(embedder)
    for height, width in ((unit * a, unit * b) for a, b in TILE_SIZES):
        count, kinds, places = (f(height, width) for f in (embedder.num_tokens, embedder.kinds, embedder.places))
        assert (kinds.dtype, kinds.shape) == (torch.int8, (count,))
        assert (places.dtype, places.shape) == (torch.int32, (count, 2))
        assert {int(kind) for kind in kinds} <= {TokenKind.IMAGE, TokenKind.BOUNDARY, TokenKind.QUERY}
        cells, ends = places[kinds == TokenKind.IMAGE], places[kinds == TokenKind.BOUNDARY]
        rows, columns = (int(size) + 1 for size in cells.amax(0))
        assert rows * width == columns * height, "the grid has the shape of the tile"
        assert cells.tolist() == [[row, column] for row in range(rows) for column in range(columns)], "row by row"
        assert {tuple(end) for end in ends.tolist()} <= {(-1, -1), *((row, columns) for row in range(rows))}
        assert (places[kinds == TokenKind.QUERY] == -1).all()
        described = embedder.tile_tokens(height, width)
        assert described is embedder.tile_tokens(height, width) and described.tolist() == [
            kinds.tolist(),
            *places.T.tolist(),
        ]
    with torch.device("meta"):
        assert make(cls).tile_tokens(unit, unit).shape[0] == 3, "known on the host wherever the weights are"


@every("patch_embedder")
def test_patch_embedder_names_sizes_that_cannot_be_cut(cls: type) -> None:
    embedder = make(cls)
    unit = smallest_square(embedder)
    for height, width in ((unit + 1, unit), (unit, 2 * unit - 1), (0, unit)):
        with pytest.raises(UserError, match=f"{height} x {width} px.*multiples of {unit} px"):
            embedder.num_tokens(height, width)
    with pytest.raises(UserError, match="multiples of"):
        embedder(torch.zeros(1, 3, unit + 1, unit))


@every("patch_embedder")
@torch.no_grad()
def test_patch_embedder_takes_tile_by_tile(cls: type) -> None:
    embedder = make_rough(cls)
    tiles = torch.randn(3, 3, embedder.image_size, embedder.image_size)
    alone = torch.cat([embedder(tile[None]) for tile in tiles])
    torch.testing.assert_close(embedder(tiles), alone, atol=1e-5, rtol=1e-5)
    assert (embedder(tiles) - embedder(tiles.flip(0))).abs().max() > 1e-3


@every("patch_embedder")
@torch.no_grad()
def test_patch_embedder_writes_row_major(cls: type) -> None:
    """The bottom right corner of a tile reaches its last token and not its first."""
    embedder = make_rough(cls)
    unit = smallest_square(embedder)
    tile = torch.randn(1, 3, 2 * unit, 2 * unit)
    changed = tile.clone()
    changed[..., unit:, unit:] += 1.0
    cells = embedder.kinds(2 * unit, 2 * unit) == TokenKind.IMAGE
    change = (embedder(tile) - embedder(changed)).abs().amax(dim=1)[cells]
    top_right = tile.clone()
    top_right[..., :unit, unit:] += 1.0
    right = (embedder(tile) - embedder(top_right)).abs().amax(dim=1)[cells]
    if len(change) == 4:  # one token a square; an encoder whose tokens see one another need not be this local
        assert change[3] == change.max() and change[3] > 0
        assert right[1] == right.max() and right[1] > 0


@every("patch_embedder")
def test_patch_embedder_trains_all_of_it(cls: type) -> None:
    embedder = make_rough(cls)
    tokens = embedder(torch.randn(2, 3, embedder.image_size, embedder.image_size))
    (tokens * torch.randn_like(tokens)).sum().backward()
    for name, parameter in embedder.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.any() != (name in NO_GRADIENT.get(cls.__name__, ())), name


@every("patch_embedder")
def test_patch_embedder_without_tiles_has_zero_and_not_missing_gradients(cls: type) -> None:
    embedder = make_rough(cls)
    tokens = embedder(torch.zeros(0, 3, 1, 1))
    assert tokens.shape == (0, embedder.hidden_size)
    tokens.sum().backward()
    for name, parameter in embedder.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


@every("patch_embedder")
@torch.no_grad()
def test_patch_embedder_follows_its_weights_to_bf16(cls: type) -> None:
    embedder = make_rough(cls)
    tiles = torch.randn(1, 3, embedder.image_size, embedder.image_size)
    wide, narrow = embedder(tiles), embedder.bfloat16()(tiles)
    assert narrow.dtype == torch.bfloat16
    assert float((narrow.float() - wide).norm() / wide.norm()) < 0.1
