"""Two convs with a GELU between them (EVEv2, NEO).

n tiles, C channels of the first conv, h x w cells, N visual tokens, D hidden size of the backbone.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from components.patch_embedders.grid import GridEmbedder
from components.patch_embedders.rotary import grid_angles, rotate_pairs
from mmframe.errors import UserError
from mmframe.registry import register


@register("patch_embedder")
class ConvConvPatchEmbedder(GridEmbedder):
    """Conv2d over patches -> GELU (erf) -> Conv2d over blocks of patches: one token a block.

    Defaults are EVEv2 (arXiv 2502.06788; its code, vision_tokenizer.py): 16 px patches, blocks of 2 x 2, a class token
    in front and a split token after each row; 15.5 M parameters beside Qwen2.5-7B's 3,584. There the pictures keep
    their shape, up to 800 px; here they come in tiles.
    ``rotary: true, class_token: false, row_end: false`` is NEO (arXiv 2510.14979; modeling_neo_vit.py): 9.2 M beside
    Qwen3-1.7B's 2,048.

    Args:
        hidden_size: D; filled in from the backbone.
        image_size: Edge of a tile, pixels.
        patch_size: Edge of a patch, pixels.
        merge: Edge of a block, patches.
        channels: C of the first conv.
        rotary: Between the convs, patches are turned by their column (first half of the channels) and row (second).
        rope_theta: Base of the rotary frequencies.
        class_token: A learned token before the grid.
        row_end: A learned token after each row of the grid.
        around: Of GridEmbedder.
    """

    toy_args = dict(image_size=8, patch_size=2, channels=8, rotary=True)

    def __init__(
        self,
        hidden_size: int,
        image_size: int = 800,
        patch_size: int = 16,
        merge: int = 2,
        channels: int = 1024,
        rotary: bool = False,
        rope_theta: float = 10000.0,
        class_token: bool = True,
        row_end: bool = True,
        **around: Any,
    ) -> None:
        super().__init__(
            hidden_size, image_size, patch_size * merge, class_token=class_token, row_end=row_end, **around
        )
        if rotary and channels % 4:
            raise UserError(f"patch_embedder: channels={channels} must be a multiple of 4 for rotary=true")
        self.rotary, self.rope_theta = rotary, rope_theta
        self.conv = nn.Conv2d(3, channels, patch_size, stride=patch_size)
        self.merge = nn.Conv2d(channels, hidden_size, merge, stride=merge)

    def tokens(self, tiles: Tensor) -> Tensor:
        x_nChw = F.gelu(self.conv(tiles))
        if self.rotary:
            channels, rows, columns = x_nChw.shape[1:]
            angles = grid_angles(rows, columns, channels, self.rope_theta, x_nChw.device).flip(1).flatten(1)
            x_nKC = rotate_pairs(x_nChw.flatten(2).transpose(1, 2), angles)
            x_nChw = x_nKC.transpose(1, 2).unflatten(2, (rows, columns))
        return self.arranged(self.merge(x_nChw).permute(0, 2, 3, 1))
