"""The simplest patch embedder: one linear map of raw pixels (Fuyu, SOLO)."""

from typing import Any

from torch import Tensor, nn

from components.patch_embedders.common import patches
from components.patch_embedders.grid import GridEmbedder
from mmframe.registry import register


@register("patch_embedder")
class LinearPatchEmbedder(GridEmbedder):
    """Raw patches -> Linear -> visual tokens. No positions: the backbone's order says where a patch is.

    Source: Fuyu-8B (30 px patches; ``row_end`` is its newline), SOLO (arXiv 2407.06438: 32 px patches without a bias,
    defaults but for that; its separators stand between rows only). Beside SOLO's backbone of 4,096 these are 12.6 M
    parameters.

    Args:
        hidden_size: D; filled in from the backbone.
        image_size: Edge of a tile, pixels.
        patch_size: Edge of a patch, pixels; one token each.
        bias: The Linear has a bias.
        around: Of GridEmbedder.
    """

    toy_args = dict(image_size=8, patch_size=4, row_end=True)

    def __init__(
        self, hidden_size: int, image_size: int = 480, patch_size: int = 32, bias: bool = True, **around: Any
    ) -> None:
        super().__init__(hidden_size, image_size, patch_size, **around)
        self.linear = nn.Linear(3 * patch_size**2, hidden_size, bias=bias)

    def tokens(self, tiles: Tensor) -> Tensor:
        return self.arranged(self.linear(patches(tiles, self.step).flatten(3)))
