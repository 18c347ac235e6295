"""InternViT as patch embedder: the vision encoder of InternVL, the modular baseline.

n tiles, C width of the encoder, K tokens of a tile (class token first, then row by row), H heads, d head size,
N visual tokens, D hidden size of the backbone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
from components.patch_embedders.intern_weights import load_encoder
from components.patch_embedders.layers import NORMS, Layer
from mmframe.checkpoints import TensorLink, refuse
from mmframe.errors import UserError
from mmframe.registry import register


@register("patch_embedder")
class InternViT(GridEmbedder):
    """InternViT -> pixel shuffle -> LayerNorm, Linear, GELU, Linear: the patch embedder of InternVL-1.5.

    Pair it with SharedRouter for the modular baseline. Defaults are InternViT-300M-448px with the projector of
    InternVL-1.5-2B (448 px tile -> 256 tokens; 317 M parameters beside a backbone of 2,048). The encoder trains or
    freezes with ``patch_embedder.layers.*`` and the projector with ``patch_embedder.mlp.*``. Source: InternVL-1.5
    (arXiv 2404.16821) and config.json of OpenGVLab/InternViT-300M-448px.

    Args:
        hidden_size: D; filled in from the backbone.
        image_size: Edge of a tile, pixels.
        patch_size: Edge of a patch, pixels.
        channels: C.
        num_layers: Number of layers.
        num_heads: Heads; divides channels.
        intermediate_size: Width between the two Linears of a layer's MLP.
        norm: ``layer_norm`` or ``rms_norm``, both norms of every layer.
        norm_eps: eps of those norms and of the norms of q and k.
        qkv_bias: q, k and v have biases.
        qk_norm: RMSNorm of q and of k, over all heads together.
        select_layer: Whose output are the features: 0 the embeddings, 1 the first layer, -1 the last.
        downsample: Pixel shuffle ratio; 0.5 merges 2 x 2 patches.
        shuffle_version: ``v2`` or ``v1`` (leaves the image transposed).
        layer_scale: Initial value of both layer scales.
        drop_path: Stochastic depth of the last layer, while training; it grows linearly from 0 at the first.
        gradient_checkpointing: Layers are computed again in the backward: less activation memory, a third more time.
        weights: A safetensors file or folder of an InternViT, with official names (OpenGVLab/InternViT-300M-448px) or
            timm's, to start from; a projector in it is taken too. null: random.
        around: Of GridEmbedder.
    """

    toy_args = dict(image_size=8, patch_size=2, channels=16, num_layers=2, num_heads=2, intermediate_size=24)

    def __init__(
        self,
        hidden_size: int,
        image_size: int = 448,
        patch_size: int = 14,
        channels: int = 1024,
        num_layers: int = 24,
        num_heads: int = 16,
        intermediate_size: int = 4096,
        norm: str = "layer_norm",
        norm_eps: float = 1e-6,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        select_layer: int = -1,
        downsample: float = 0.5,
        shuffle_version: str = "v2",
        layer_scale: float = 0.1,
        drop_path: float = 0.0,
        gradient_checkpointing: bool = False,
        weights: str | None = None,
        **around: Any,
    ) -> None:
        block = shuffle_block(downsample, shuffle_version)
        super().__init__(hidden_size, image_size, patch_size * block, **around)
        if not -num_layers - 1 <= select_layer <= num_layers:
            raise UserError(
                f"patch_embedder: select_layer={select_layer} is outside of {-num_layers - 1}..{num_layers} "
                f"of {num_layers} layers"
            )
        self.patch_size, self.block, self.shuffle_version = patch_size, block, shuffle_version
        self.depth = select_layer if select_layer >= 0 else num_layers + 1 + select_layer
        self.gradient_checkpointing = gradient_checkpointing
        self.conv = nn.Conv2d(3, channels, patch_size, stride=patch_size)
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, channels))
        self.position = nn.Parameter(torch.zeros(1, 1 + (image_size // patch_size) ** 2, channels))
        rates = [drop_path * index / max(1, num_layers - 1) for index in range(num_layers)]
        self.layers = nn.ModuleList(
            Layer(channels, num_heads, intermediate_size, norm, norm_eps, qkv_bias, qk_norm, layer_scale, rate)
            for rate in rates
        )
        self.mlp = projector(channels * self.block**2, hidden_size)
        if self.position.device.type == "meta":
            return
        for parameter in (self.class_embedding, self.position):
            nn.init.normal_(parameter, std=0.02)
        if weights is not None:
            load_encoder(self, Path(weights))

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Constructor arguments for the config.json of an InternVL chat model.

        Raises:
            UserError: a value that cannot be honoured; names its key.
        """
        vision = config["vision_config"]
        allowed: dict[str, Sequence[Any]] = {
            "hidden_act": ("gelu",),
            "num_channels": (3,),
            "dropout": (0,),
            "attention_dropout": (0,),
            "norm_type": tuple(NORMS),
        }
        refuse(vision, allowed, "config.json, vision_config")
        return embedder_arguments(config) | dict(
            num_layers=vision["num_hidden_layers"],
            num_heads=vision["num_attention_heads"],
            intermediate_size=vision["intermediate_size"],
            norm=vision.get("norm_type", "rms_norm"),
            norm_eps=vision.get("layer_norm_eps", 1e-6),
            qkv_bias=vision.get("qkv_bias", False),
            qk_norm=vision.get("qk_normalization", True),
            select_layer=config.get("select_layer", -4),  # the default of the official class
            drop_path=vision.get("drop_path_rate", 0.0),
        )

    def encode(self, tiles: Tensor) -> Tensor:
        """Tiles [n, 3, h, w] -> hidden states of the selected layer [n, K, C], class token first."""
        x = self.conv(tiles)
        x = x + grid_positions(self.position[:, 1:], *x.shape[2:])
        first = (self.class_embedding + self.position[:, :1]).expand(len(x), -1, -1)
        x_nKC = torch.cat([first, x.flatten(2).transpose(1, 2)], dim=1)
        for layer in self.layers[: self.depth]:
            x_nKC = self._run(layer, x_nKC)
        unused = self.layers[self.depth :]
        if not len(unused) or not torch.is_grad_enabled():
            return x_nKC
        probe = x_nKC[:1]
        for layer in unused:  # of no effect, but with gradients of zero in place of none: DDP waits for all
            probe = layer(probe)
        return x_nKC + probe[:0].sum()

    def _run(self, layer: nn.Module, x_nKC: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, x_nKC, use_reentrant=False)  # type: ignore[return-value]
        return layer(x_nKC)

    def tokens(self, tiles: Tensor) -> Tensor:
        n, _, height, width = tiles.shape
        if n == 0:  # encode a blank tile and keep none of it: zero gradients, and the same calls as on other ranks
            return self.tokens(tiles.new_zeros(1, 3, height, width))[:0]
        x = self.encode(tiles)[:, 1:].unflatten(1, (height // self.patch_size, width // self.patch_size))
        return self.arranged(self.mlp(pixel_shuffle(x, self.block, self.shuffle_version)))

    def tensor_map(self) -> list[TensorLink]:
        """Official tensors <-> our parameters.

        Raises:
            UserError: an option that the official layout has no place for.
        """
        self.refuse_in_official_layout()
        return self.links()

    def links(self) -> list[TensorLink]:
        """The official names of the encoder and the projector, whatever else there is."""
        layers = [
            TensorLink(f"vision_model.encoder.layers.{name}", (f"layers.{name}",))
            for name, _ in self.layers.named_parameters()
        ]
        return EMBEDDING_LINKS + layers + PROJECTOR_LINKS
