"""A whole vision encoder of timm as patch embedder: modular models, under the same keys as the monolithic ones.

n tiles, C width of the encoder, h x w cells of its grid, N visual tokens, D hidden size of the backbone.
"""

from typing import Any

import timm
from torch import Tensor, nn

from components.patch_embedders.common import pixel_shuffle, projector, shuffle_block
from components.patch_embedders.grid import GridEmbedder
from mmframe.errors import UserError, nearest
from mmframe.registry import register


@register("patch_embedder")
class VisionEncoder(GridEmbedder):
    """A vision encoder of timm -> pixel shuffle -> LayerNorm, Linear, GELU, Linear: the shape of InternVL-1.5.

    Source: InternVL-1.5 (arXiv 2404.16821), for the projector; the encoders are timm's.

    Pair it with SharedRouter for a modular model; the encoder trains or freezes with the patterns
    ``patch_embedder.encoder.*`` and ``patch_embedder.mlp.*``. timm's InternViT is ``vit_intern300m_patch14_448``; for
    one with official names, export and gradient checkpointing take InternViT. Vision transformers (CLIP's, DINOv2's,
    SigLIP's ``vit_so400m_patch14_siglip_384``), Swin and conv-nets without BatchNorm (``convnext_base``) are taken.

    Args:
        hidden_size: D; filled in from the backbone.
        model: Name of a model in timm, with or without the tag of its weights.
        image_size: Edge of a tile, pixels.
        downsample: Pixel shuffle ratio; 0.5 merges 2 x 2 cells.
        pretrained: Load timm's weights (from the Hugging Face hub).
        model_args: Further arguments of timm's model, e.g. ``{drop_path_rate: 0.1}``.
        around: Of GridEmbedder.
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
        **around: Any,
    ) -> None:
        if model.partition(".")[0] not in timm.list_models():  # behind the dot: which pretrained weights
            raise UserError(f"patch_embedder: timm has no model {model!r}; {nearest(model, timm.list_models())}")
        encoder = _encoder(model, pretrained, image_size, model_args or {})
        block = shuffle_block(downsample, "v2")
        cell = encoder.feature_info[-1]["reduction"]
        super().__init__(hidden_size, image_size, cell * block, **around)
        self.block, self.cell = block, cell
        self.encoder: Any = encoder
        self.mlp = projector(encoder.num_features * self.block**2, hidden_size)

    def tokens(self, tiles: Tensor) -> Tensor:
        n, _, height, width = tiles.shape
        if n == 0:  # timm takes no empty batch: encode a blank tile, keep none of it, so that gradients are zero
            return self.tokens(tiles.new_zeros(1, 3, height, width))[:0]
        x = self.encoder(tiles)
        if x.dim() == 3:  # a transformer: class and register tokens first
            x_nhwC = x[:, self.encoder.num_prefix_tokens :].unflatten(1, (height // self.cell, width // self.cell))
        else:
            x_nhwC = x if getattr(self.encoder, "output_fmt", "NCHW") == "NHWC" else x.permute(0, 2, 3, 1)
        return self.arranged(self.mlp(pixel_shuffle(x_nhwC, self.block, "v2")))


def _encoder(model: str, pretrained: bool, image_size: int, model_args: dict[str, Any]) -> Any:
    """timm's model without pooling and classifier.

    Raises:
        UserError: with BatchNorm, in training a tile's tokens would depend on the other tiles of the batch.
    """
    settings: dict[str, Any] = dict(pretrained=pretrained, num_classes=0, global_pool="") | model_args
    sized: dict[str, Any] = dict(img_size=image_size, dynamic_img_size=True)
    try:
        encoder = timm.create_model(model, **(sized | settings))
    except TypeError:  # conv-nets take any size, and no argument for it
        encoder = timm.create_model(model, **settings)
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules()):
        raise UserError(
            f"patch_embedder: {model} has BatchNorm, with which a picture's tokens would depend on the other pictures "
            "of its batch; take a model with LayerNorm, such as convnext_base"
        )
    return encoder
