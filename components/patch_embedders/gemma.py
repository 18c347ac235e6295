"""Large raw patches with norms and factorised positions: the patch embedder of Gemma 4 Unified.

n tiles, P numbers of a patch, C width between the two Linears, h x w patches, D hidden size of the backbone.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from components.patch_embedders.common import patches
from components.patch_embedders.grid import GridEmbedder, learned
from mmframe.errors import UserError
from mmframe.registry import register


@register("patch_embedder")
class GemmaPatchEmbedder(GridEmbedder):
    """LN -> Linear -> LN -> + column and row positions -> LN -> RMSNorm -> Linear, over raw patches.

    Source: Gemma 4 12B Unified (arXiv 2607.02770), as transformers has it (Gemma4UnifiedVisionEmbedder). Defaults are
    its config: 48 px patches, 49.9 M parameters beside its backbone of 3,840. There a picture keeps its shape and has
    at most 280 tokens; a default tile has 256.

    Args:
        hidden_size: D; filled in from the backbone.
        image_size: Edge of a tile, pixels.
        patch_size: Edge of a patch, pixels; one token each.
        channels: C.
        table_size: Rows and columns that have positions.
        norm_eps: eps of the RMSNorm, which has no weight; the LayerNorms have torch's.
        around: Of GridEmbedder.
    """

    toy_args = dict(image_size=8, patch_size=2, channels=16, table_size=8)

    def __init__(
        self,
        hidden_size: int,
        image_size: int = 768,
        patch_size: int = 48,
        channels: int = 3840,
        table_size: int = 1120,
        norm_eps: float = 1e-6,
        **around: Any,
    ) -> None:
        super().__init__(hidden_size, image_size, patch_size, **around)
        self.table_size, self.norm_eps = table_size, norm_eps
        numbers = 3 * patch_size**2
        self.patch_norm = nn.LayerNorm(numbers)
        self.patch_linear = nn.Linear(numbers, channels)
        self.channel_norm = nn.LayerNorm(channels)
        self.column_position = learned(table_size, channels)
        self.row_position = learned(table_size, channels)
        self.position_norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, hidden_size, bias=False)
        self._check_table(image_size // patch_size, image_size // patch_size)

    def _check_table(self, rows: int, columns: int) -> None:
        if max(rows, columns) > self.table_size:
            raise UserError(
                f"patch_embedder: a tile of {rows} x {columns} patches is larger than the table of positions, "
                f"table_size={self.table_size}; take smaller tiles"
            )

    def tokens(self, tiles: Tensor) -> Tensor:
        x_nhwP = patches(tiles, self.step).permute(0, 1, 2, 4, 5, 3).flatten(3)  # colours last, as it was trained
        rows, columns = x_nhwP.shape[1:3]
        self._check_table(rows, columns)
        x_nhwC = self.channel_norm(self.patch_linear(self.patch_norm(x_nhwP)))
        x_nhwC = self.position_norm(x_nhwC + self.row_position[:rows, None] + self.column_position[:columns])
        return self.arranged(self.linear(F.rms_norm(x_nhwC, x_nhwC.shape[-1:], eps=self.norm_eps)))
