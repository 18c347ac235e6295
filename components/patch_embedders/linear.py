"""The simplest patch embedder: one linear map of raw pixels (Fuyu, SOLO)."""

from torch import Tensor, nn

from mmframe.contracts import PatchEmbedder, whole_tokens
from mmframe.registry import register


@register("patch_embedder")
class LinearPatchEmbedder(PatchEmbedder):
    """Raw patches -> Linear -> visual tokens. No positions: the backbone's order says where a patch is.

    Source: Fuyu-8B (30 px patches), SOLO (32 px patches).

    Args:
        hidden_size: D; filled in from the backbone.
        image_size: Edge of a tile, pixels.
        patch_size: Edge of a patch, pixels; one token each.
        bias: The Linear has a bias.
    """

    toy_args = dict(image_size=8, patch_size=4)

    def __init__(self, hidden_size: int, image_size: int = 480, patch_size: int = 32, bias: bool = True) -> None:
        super().__init__()
        self.hidden_size, self.image_size, self.patch_size = hidden_size, image_size, patch_size
        self.num_tokens(image_size, image_size)
        self.linear = nn.Linear(3 * patch_size**2, hidden_size, bias=bias)

    def num_tokens(self, height: int, width: int) -> int:
        return whole_tokens(height, width, self.patch_size)

    def forward(self, tiles: Tensor) -> Tensor:
        p = self.patch_size
        n, _, height, width = tiles.shape
        if n == 0:  # map nothing, of the right size: zero gradients instead of missing ones
            height = width = self.image_size
            tiles = tiles.new_zeros(0, 3, height, width)
        rows, columns = height // p, width // p
        self.num_tokens(height, width)
        x = tiles.reshape(n, 3, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5)
        return self.linear(x.reshape(n * rows * columns, 3 * p * p).to(self.linear.weight.dtype))
