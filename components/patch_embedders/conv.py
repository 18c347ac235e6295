"""One conv over patches, and what may follow it: norm, learned positions, Linear.

n tiles, C channels of a grid cell, h x w cells, N visual tokens, D hidden size of the backbone.
"""

from typing import Any

from torch import Tensor, nn

from components.patch_embedders.common import grid_positions
from components.patch_embedders.grid import GridEmbedder, learned
from components.patch_embedders.layers import NORMS, chosen
from mmframe.registry import register


@register("patch_embedder")
class ConvPatchEmbedder(GridEmbedder):
    """Conv2d with stride = kernel -> norm -> + learned positions -> Linear: one token a patch.

    Defaults are the embedder of VoRA (arXiv 2503.20680, models/vision_embedding.py: that of AIMv2 and a Linear): beside
    its backbone of 3,584, Qwen2.5-7B, 7.98 M parameters. On other grids than that of `image_size` positions are
    interpolated (bicubic); there the released code takes the first ones of the table, row by row. The conv alone
    (``channels: null, norm: none, positions: false``) is the first part of EVE's tokenizer.

    Args:
        hidden_size: D; filled in from the backbone.
        image_size: Edge of a tile, pixels.
        patch_size: Edge of a patch, pixels; one token each.
        channels: C of the conv; null: the conv makes D at once and no Linear follows.
        bias: The conv has a bias. The Linear has none.
        norm: ``rms_norm``, ``layer_norm`` or ``none``.
        norm_eps: eps of the norm.
        positions: Learned positions are added.
        position_std: Standard deviation of the initial positions.
        around: Of GridEmbedder.
    """

    toy_args = dict(image_size=8, patch_size=4, channels=8, num_queries=3)

    def __init__(
        self,
        hidden_size: int,
        image_size: int = 448,
        patch_size: int = 14,
        channels: int | None = 1536,
        bias: bool = True,
        norm: str = "rms_norm",
        norm_eps: float = 1e-5,
        positions: bool = True,
        position_std: float = 0.02,
        **around: Any,
    ) -> None:
        super().__init__(hidden_size, image_size, patch_size, **around)
        chosen("norm", norm, [*NORMS, "none"])
        size = hidden_size if channels is None else channels
        self.conv = nn.Conv2d(3, size, patch_size, stride=patch_size, bias=bias)
        self.norm = None if norm == "none" else NORMS[norm](size, eps=norm_eps)
        self.position = learned((image_size // patch_size) ** 2, size, position_std) if positions else None
        self.linear = None if channels is None else nn.Linear(size, hidden_size, bias=False)

    def tokens(self, tiles: Tensor) -> Tensor:
        x_nhwC = self.conv(tiles).permute(0, 2, 3, 1)
        if self.norm is not None:
            x_nhwC = self.norm(x_nhwC)
        if self.position is not None:
            x_nhwC = x_nhwC + grid_positions(self.position[None], *x_nhwC.shape[1:3]).permute(0, 2, 3, 1)
        return self.arranged(x_nhwC if self.linear is None else self.linear(x_nhwC))
