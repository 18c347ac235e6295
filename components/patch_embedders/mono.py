"""The patch embedder of Mono-InternVL: patch conv, learned positions, pixel shuffle, MLP.

n tiles, C embedding channels of the conv, g grid side, N visual tokens, D hidden size of the backbone.
"""

from typing import Any

import torch
from torch import Tensor, nn

from components.patch_embedders.common import (
    EMBEDDING_LINKS,
    PROJECTOR_LINKS,
    grid_positions,
    pixel_shuffle,
    projector,
    shuffle_block,
)
from components.patch_embedders.grid import GridEmbedder
from components.patch_embedders.hf_config import embedder_arguments
from mmframe.checkpoints import TensorLink, refuse
from mmframe.registry import register


@register("patch_embedder")
class MonoPatchEmbedder(GridEmbedder):
    """x_v = MLP(PatchEmbed(I) + PE): one visual token per (patch_size / downsample)^2 pixels.

    Conv2d with stride = kernel = patch_size -> + learned positions (bicubic interpolation to other grids) -> pixel
    shuffle -> LayerNorm, Linear, GELU (erf), Linear. No transformer layer. Source: Mono-InternVL (arXiv 2410.08202),
    section 3.1; defaults are the released 2B model (448 px tile -> 256 tokens).

    Args:
        hidden_size: D; filled in from the backbone.
        image_size: Edge of a tile, pixels.
        patch_size: Edge of a patch, pixels.
        channels: C of the conv.
        downsample: Pixel shuffle ratio; 0.5 merges 2 x 2 patches.
        shuffle_version: ``v2`` (released models) or ``v1``.
        class_slot: Keep the class embedding and row 0 of the positions of the released checkpoints; neither has
            an effect on the output.
        position_std: Standard deviation of the initial positions.
        around: Of GridEmbedder.
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
        position_std: float = 0.02,
        **around: Any,
    ) -> None:
        block = shuffle_block(downsample, shuffle_version)
        super().__init__(hidden_size, image_size, patch_size * block, **around)
        self.patch_size, self.block, self.shuffle_version = patch_size, block, shuffle_version
        cells = (image_size // patch_size) ** 2
        self.conv = nn.Conv2d(3, channels, patch_size, stride=patch_size)
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, channels)) if class_slot else None
        self.position = nn.Parameter(torch.zeros(1, int(class_slot) + cells, channels))
        self.mlp = projector(channels * self.block**2, hidden_size)
        if self.position.device.type != "meta":
            nn.init.normal_(self.position, std=position_std)

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Constructor arguments for the config.json of a released Mono-InternVL.

        Raises:
            UserError: a value that cannot be honoured; names its key.
        """
        refuse(config, {"select_layer": (-1,)})  # there are no layers to select from
        return embedder_arguments(config)

    def positions(self, rows: int, columns: int) -> Tensor:
        """Learned positions [1, C, rows, columns]."""
        if self.class_embedding is None:
            return grid_positions(self.position, rows, columns)
        # the class embedding has no effect, but a gradient of zero in place of none: DDP waits for all
        return grid_positions(self.position[:, 1:] + 0 * self.class_embedding, rows, columns)

    def tokens(self, tiles: Tensor) -> Tensor:
        x = self.conv(tiles)
        x = x + self.positions(*x.shape[2:])
        x = pixel_shuffle(x.permute(0, 2, 3, 1), self.block, self.shuffle_version)
        return self.arranged(self.mlp(x))

    def tensor_map(self) -> list[TensorLink]:
        """Official tensors <-> our parameters.

        Raises:
            UserError: an option that the official layout has no place for.
        """
        self.refuse_in_official_layout(**({"class_slot": False} if self.class_embedding is None else {}))
        return EMBEDDING_LINKS + PROJECTOR_LINKS
