"""Base of patch embedders whose tokens are a grid, and what may stand around the grid.

n tiles, h x w cells of a tile's grid, N visual tokens, D hidden size of the backbone.
"""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmframe.contracts import PatchEmbedder, whole_tokens
from mmframe.errors import UserError
from mmframe.kinds import TokenKind
from mmframe.tile_tokens import grid_places


class GridEmbedder(PatchEmbedder):
    """A token for each square of a tile, row by row, with learned tokens around them where asked for.

    What stands around the grid is made for each tile, like the grid itself: how many tokens a tile gives, and which,
    never depends on the picture's other tiles.

    Args:
        hidden_size: D; filled in from the backbone.
        image_size: Edge of a tile, pixels.
        step: Edge of the square that a token covers, pixels.
        class_token: A learned token before the grid (EVEv2), of kind boundary.
        row_end: A learned token after each row of the grid (Fuyu's newline, EVEv2's split), of kind boundary.
        num_queries: Learnable queries after the grid, of kind query (BREEN, arXiv 2503.12446). A picture of one tile
            has them once, as there; one of several tiles once for each.
        output_rms: Every token is scaled to this RMS, that of the backbone's token embeddings (0.13 for SmolLM2), so
            that a fresh embedder speaks at the volume of text. null: no scaling.
    """

    def __init__(
        self,
        hidden_size: int,
        image_size: int,
        step: int,
        class_token: bool = False,
        row_end: bool = False,
        num_queries: int = 0,
        output_rms: float | None = None,
    ) -> None:
        super().__init__()
        if num_queries < 0:
            raise UserError(f"patch_embedder: num_queries={num_queries} must be at least 0")
        self.hidden_size, self.image_size, self.step, self.output_rms = hidden_size, image_size, step, output_rms
        self.num_tokens_around = (int(class_token), int(row_end), num_queries)
        self.class_token = learned(1, hidden_size) if class_token else None
        self.row_end = learned(1, hidden_size) if row_end else None
        self.queries = learned(num_queries, hidden_size) if num_queries else None
        self.num_tokens(image_size, image_size)

    @abstractmethod
    def tokens(self, tiles: Tensor) -> Tensor:
        """Tiles [n, 3, height, width] of a size that gives whole tokens, in the weights' dtype -> tokens [N, D].

        Of no tiles, zero gradients and not missing ones. The way there ends with `arranged`.
        """

    def _grid_size(self, height: int, width: int) -> tuple[int, int]:
        whole_tokens(height, width, self.step)
        return height // self.step, width // self.step

    def num_tokens(self, height: int, width: int) -> int:
        rows, columns = self._grid_size(height, width)
        first, end, queries = self.num_tokens_around
        return first + rows * (columns + end) + queries

    def kinds(self, height: int, width: int) -> Tensor:
        rows, columns = self._grid_size(height, width)
        first, end, queries = self.num_tokens_around
        row = [TokenKind.IMAGE] * columns + [TokenKind.BOUNDARY] * end
        kinds = [TokenKind.BOUNDARY] * first + row * rows + [TokenKind.QUERY] * queries
        return torch.tensor(kinds, dtype=torch.int8, device="cpu")

    def places(self, height: int, width: int) -> Tensor:
        rows, columns = self._grid_size(height, width)
        first, end, queries = self.num_tokens_around
        return F.pad(grid_places(rows, columns + end), (0, 0, first, queries), value=-1)

    def forward(self, tiles: Tensor) -> Tensor:
        n, _, height, width = tiles.shape
        if n == 0:  # nothing, of the right size: zero gradients instead of missing ones
            height = width = self.image_size
            tiles = tiles.new_zeros(0, 3, height, width)
        self.num_tokens(height, width)
        y_ND = self.tokens(tiles.to(next(self.parameters()).dtype))
        return y_ND if self.output_rms is None else F.rms_norm(y_ND, y_ND.shape[-1:]) * self.output_rms

    def arranged(self, cells_nhwD: Tensor, class_n1D: Tensor | None = None) -> Tensor:
        """Cells of the grid, with what stands around them, in their order: [N, D].

        Args:
            cells_nhwD: The grid.
            class_n1D: Class token of each tile, in place of the learned one for all.
        """
        n, rows = cells_nhwD.shape[:2]
        if self.row_end is not None:
            ends = self.row_end.to(cells_nhwD.dtype).expand(n, rows, 1, -1)
            cells_nhwD = torch.cat([cells_nhwD, ends], dim=2)
        parts = [cells_nhwD.flatten(1, 2)]
        if class_n1D is not None:
            parts.insert(0, class_n1D)
        elif self.class_token is not None:
            parts.insert(0, self.class_token.to(cells_nhwD.dtype).expand(n, 1, -1))
        if self.queries is not None:
            parts.append(self.queries.to(cells_nhwD.dtype).expand(n, -1, -1))
        return (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]).flatten(0, 1)

    def refuse_in_official_layout(self, **more: object) -> None:
        """Raises a UserError that names the options for which the official layout has no place.

        Args:
            more: Options of the class that have none, where they are set.
        """
        first, end, queries = self.num_tokens_around
        options = {"class_token": bool(first), "row_end": bool(end), "num_queries": queries}
        told = {name: value for name, value in options.items() if value} | more
        if self.output_rms is not None:
            told["output_rms"] = self.output_rms
        if told:
            raise UserError(
                f"patch_embedder: {', '.join(f'{name}={value}' for name, value in told.items())} has no place in the "
                "official layout"
            )


def learned(count: int, size: int, std: float = 0.02) -> nn.Parameter:
    """A table of learned vectors [count, size], normally distributed at first."""
    table = torch.zeros(count, size)
    return nn.Parameter(table if table.device.type == "meta" else nn.init.normal_(table, std=std))
