"""A whole vision encoder of timm as patch embedder: modular models, under the same keys as the monolithic ones.

n tiles, C width of the encoder, N visual tokens, D hidden size of the backbone.
"""

from typing import Any

import timm
from torch import Tensor

from components.patch_embedders.common import pixel_shuffle, projector, shuffle_block
from mmframe.contracts import PatchEmbedder, whole_tokens
from mmframe.errors import UserError, nearest
from mmframe.registry import register


@register("patch_embedder")
class VisionEncoder(PatchEmbedder):
    """A ViT of timm -> pixel shuffle -> LayerNorm, Linear, GELU, Linear: the shape of InternVL-1.5.

    Pair it with SharedRouter for a modular model; the encoder trains or freezes with the patterns
    ``patch_embedder.encoder.*`` and ``patch_embedder.mlp.*``. timm's InternViT is ``vit_intern300m_patch14_448``; for
    one with official names, export and gradient checkpointing take InternViT.

    Args:
        hidden_size: D; filled in from the backbone.
        model: Name of a vision transformer in timm, with or without the tag of its weights.
        image_size: Edge of a tile, pixels.
        downsample: Pixel shuffle ratio; 0.5 merges 2 x 2 patches.
        pretrained: Load timm's weights (from the Hugging Face hub).
        model_args: Further arguments of timm's model, e.g. ``{drop_path_rate: 0.1}``.
    """

    toy_args = {"model": "test_vit", "image_size": 64}

    def __init__(
        self,
        hidden_size: int,
        model: str = "vit_large_patch14_dinov2",
        image_size: int = 448,
        downsample: float = 0.5,
        pretrained: bool = False,
        model_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if model.partition(".")[0] not in timm.list_models():  # behind the dot: which pretrained weights
            raise UserError(f"patch_embedder: timm has no model {model!r}; {nearest(model, timm.list_models())}")
        self.hidden_size, self.image_size = hidden_size, image_size
        self.block = shuffle_block(downsample, "v2")
        settings: dict[str, Any] = dict(img_size=image_size, num_classes=0, global_pool="", dynamic_img_size=True)
        self.encoder: Any = timm.create_model(model, pretrained=pretrained, **(settings | (model_args or {})))
        self.patch_size = self.encoder.patch_embed.patch_size[0]
        self.num_tokens(image_size, image_size)
        self.mlp = projector(self.encoder.num_features * self.block**2, hidden_size)

    def num_tokens(self, height: int, width: int) -> int:
        return whole_tokens(height, width, self.patch_size * self.block)

    def forward(self, tiles: Tensor) -> Tensor:
        n, _, height, width = tiles.shape
        if n == 0:  # timm takes no empty batch: encode a blank tile, keep none of it, so that gradients are zero
            return self(tiles.new_zeros(1, 3, self.image_size, self.image_size))[:0]
        self.num_tokens(height, width)
        x = self.encoder.forward_features(tiles.to(next(self.mlp.parameters()).dtype))[
            :, self.encoder.num_prefix_tokens :
        ]
        x = x.unflatten(1, (height // self.patch_size, width // self.patch_size))
        return self.mlp(pixel_shuffle(x, self.block, "v2").flatten(0, 2))
