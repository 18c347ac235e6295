"""The patch embedder of Mono-InternVL: patch conv, learned positions, pixel shuffle, MLP.

n tiles, C embedding channels of the conv, g grid side, N visual tokens, D hidden size of the backbone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmframe.contracts import PatchEmbedder, whole_tokens
from mmframe.errors import UserError
from mmframe.registry import register


def pixel_shuffle(x: Tensor, block: int, version: str) -> Tensor:
    """Moves blocks of `block` x `block` grid cells into channels: [n, h, w, C] -> [n, h/b, w/b, C*b*b].

    v2 keeps the image upright; v1, of the first checkpoints, leaves it transposed (REF modeling_internvl_chat.py).
    """
    n, h, w, c = x.shape
    x = x.reshape(n, h, w // block, c * block).transpose(1, 2)
    x = x.reshape(n, w // block, h // block, c * block * block)
    return x.transpose(1, 2) if version == "v2" else x


@register("patch_embedder")
class MonoPatchEmbedder(PatchEmbedder):
    """x_v = MLP(PatchEmbed(I) + PE): one visual token per (patch_size / downsample)^2 pixels.

    Conv2d with stride = kernel = patch_size -> + learned positions (bicubic interpolation to other grids) -> pixel
    shuffle -> LayerNorm, Linear, GELU (erf), Linear. No transformer layer. Source: Mono-InternVL section 3.1;
    defaults are the released 2B model (448 px tile -> 256 tokens).

    Args:
        hidden_size: D; filled in from the backbone.
        image_size: Edge of a tile, pixels.
        patch_size: Edge of a patch, pixels.
        channels: C of the conv.
        downsample: Pixel shuffle ratio; 0.5 merges 2 x 2 patches.
        shuffle_version: ``v2`` (released models) or ``v1``.
        class_slot: Keep the class embedding and row 0 of the positions of the released checkpoints; neither has
            an effect on the output.
        output_rms: Every visual token is scaled to this RMS, that of the backbone's token embeddings (0.13 for
            SmolLM2), so that a fresh embedder speaks at the volume of text. null: as released, no scaling.
        position_std: Standard deviation of the initial positions.
    """

    toy_args = dict(image_size=8, patch_size=2, channels=8)

    def __init__(
        self,
        hidden_size: int,
        image_size: int = 448,
        patch_size: int = 14,
        channels: int = 1024,
        downsample: float = 0.5,
        shuffle_version: str = "v2",
        class_slot: bool = True,
        output_rms: float | None = None,
        position_std: float = 0.02,
    ) -> None:
        super().__init__()
        if shuffle_version not in ("v1", "v2"):
            raise UserError(f"patch_embedder: shuffle_version={shuffle_version!r} is not known; use v2 or v1")
        self.hidden_size, self.image_size, self.patch_size = hidden_size, image_size, patch_size
        self.block, self.shuffle_version = round(1 / downsample), shuffle_version
        self.output_rms = output_rms
        self.num_tokens(image_size, image_size)
        self.side = image_size // patch_size
        self.conv = nn.Conv2d(3, channels, patch_size, stride=patch_size)
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, channels)) if class_slot else None
        self.position = nn.Parameter(torch.zeros(1, int(class_slot) + self.side**2, channels))
        wide = channels * self.block**2
        self.mlp = nn.Sequential(
            nn.LayerNorm(wide), nn.Linear(wide, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
        )
        if self.position.device.type != "meta":
            nn.init.normal_(self.position, std=position_std)

    def num_tokens(self, height: int, width: int) -> int:
        return whole_tokens(height, width, self.patch_size * self.block)

    def positions(self, rows: int, columns: int) -> Tensor:
        """Learned positions [1, C, rows, columns], bicubic in fp32 where the grid is not the stored one."""
        grid = self.position[:, -(self.side**2) :].unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        if self.class_embedding is not None:  # no effect, but a gradient of zero in place of none: DDP waits for all
            grid = grid + 0 * self.class_embedding.view(1, -1, 1, 1)
        if (rows, columns) == (self.side, self.side):
            return grid
        resized = F.interpolate(grid.float(), size=(rows, columns), mode="bicubic", align_corners=False)
        return resized.to(grid.dtype)

    def forward(self, tiles: Tensor) -> Tensor:
        n, _, height, width = tiles.shape
        if n == 0:  # convolve nothing, of the right size: zero gradients instead of missing ones
            height = width = self.image_size
            tiles = tiles.new_zeros(0, 3, height, width)
        self.num_tokens(height, width)
        x = self.conv(tiles.to(self.conv.weight.dtype))
        x = x + self.positions(*x.shape[2:])
        x = pixel_shuffle(x.permute(0, 2, 3, 1), self.block, self.shuffle_version)
        y_ND = self.mlp(x.flatten(0, 2))
        return y_ND if self.output_rms is None else F.rms_norm(y_ND, (self.hidden_size,)) * self.output_rms

    @staticmethod
    def official_names() -> dict[str, str]:
        """Our parameter names -> those of the released checkpoints."""
        stem = "vision_model.embeddings."
        names = {
            "conv.weight": stem + "patch_embedding.weight",
            "conv.bias": stem + "patch_embedding.bias",
            "class_embedding": stem + "class_embedding",
            "position": stem + "position_embedding",
        }
        for layer in (0, 1, 3):
            names |= {f"mlp.{layer}.{kind}": f"mlp1.{layer}.{kind}" for kind in ("weight", "bias")}
        return names
