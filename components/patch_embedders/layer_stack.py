"""A stack of transformer layers as patch embedder, with rotary positions in the grid (NaViL).

n tiles, C width of the layers, K patches of a tile, N visual tokens, D hidden size of the backbone.
"""

from typing import Any

import torch
from torch import Tensor, nn

from components.patch_embedders.common import pixel_shuffle, projector, shuffle_block
from components.patch_embedders.grid import GridEmbedder
from components.patch_embedders.layers import Layer, chosen
from components.patch_embedders.rotary import grid_angles
from mmframe.errors import UserError
from mmframe.registry import register


@register("patch_embedder")
class LayerStack(GridEmbedder):
    """Conv over patches -> layers over the tokens of a tile -> pixel shuffle -> LayerNorm, Linear, GELU, Linear.

    Source: the visual part of NaViL (arXiv 2510.08565; modeling_navil_vit_anyres.py): layers as InternViT's, trained
    from nothing, with rotary positions of row and column in place of learned ones and no class token. Defaults are of
    the size of NaViL-2B's, 0.6 B parameters; how the released one divides that into width and depth is not confirmed.
    NaViL has windows of attention in some layers (fullatt_block_indexes); here every layer sees the whole tile.
    Decoder layers, as HoVLE (arXiv 2412.16158) has eight of, are ``ffn: swiglu, attention: causal, layer_scale: null,
    qk_norm: false``; HoVLE sends its text through them too, which a patch embedder cannot.

    Args:
        hidden_size: D; filled in from the backbone.
        image_size: Edge of a tile, pixels.
        patch_size: Edge of a patch, pixels.
        channels: C.
        num_layers: Number of layers.
        num_heads: Heads; divides channels.
        intermediate_size: Width between the Linears of a layer's FFN.
        ffn: ``gelu`` (two Linears) or ``swiglu`` (three).
        norm: ``rms_norm`` or ``layer_norm``, both norms of every layer.
        norm_eps: eps of those norms and of the norms of q and k.
        qkv_bias: q, k and v have biases.
        qk_norm: RMSNorm of q and of k, over all heads together.
        layer_scale: Initial value of both layer scales; null: none.
        attention: ``bidirectional`` or ``causal``, within a tile.
        positions: ``grid`` (rotary, of row and column) or ``none``.
        rope_theta: Base of the rotary frequencies.
        downsample: Pixel shuffle ratio; 0.5 merges 2 x 2 patches.
        around: Of GridEmbedder.
    """

    toy_args = dict(image_size=8, patch_size=2, channels=16, num_layers=2, num_heads=2, intermediate_size=24)

    def __init__(
        self,
        hidden_size: int,
        image_size: int = 448,
        patch_size: int = 14,
        channels: int = 1472,
        num_layers: int = 24,
        num_heads: int = 23,
        intermediate_size: int = 5888,
        ffn: str = "gelu",
        norm: str = "rms_norm",
        norm_eps: float = 1e-6,
        qkv_bias: bool = False,
        qk_norm: bool = True,
        layer_scale: float | None = 0.1,
        attention: str = "bidirectional",
        positions: str = "grid",
        rope_theta: float = 10000.0,
        downsample: float = 0.5,
        **around: Any,
    ) -> None:
        block = shuffle_block(downsample, "v2")
        super().__init__(hidden_size, image_size, patch_size * block, **around)
        self.block, self.rope_theta = block, rope_theta
        self.causal = chosen("attention", attention, ["bidirectional", "causal"]) == "causal"
        self.is_rotary = chosen("positions", positions, ["grid", "none"]) == "grid"
        self.head_size = channels // num_heads
        self.conv = nn.Conv2d(3, channels, patch_size, stride=patch_size)
        self.layers = nn.ModuleList(
            Layer(channels, num_heads, intermediate_size, norm, norm_eps, qkv_bias, qk_norm, layer_scale, ffn=ffn)
            for _ in range(num_layers)
        )
        self.mlp = projector(channels * self.block**2, hidden_size)
        if self.is_rotary and self.head_size % 4:
            raise UserError(
                f"patch_embedder: heads of {self.head_size} (channels {channels} / {num_heads} heads) cannot turn by "
                "row and column; take a multiple of 4, or positions=none"
            )

    def tokens(self, tiles: Tensor) -> Tensor:
        n, _, height, width = tiles.shape
        if n == 0:  # no kernel of attention need make sense of nothing: run a blank tile and keep none of it
            return self.tokens(tiles.new_zeros(1, 3, height, width))[:0]
        x = self.conv(tiles)
        rows, columns = x.shape[2:]
        x_nKC = x.flatten(2).transpose(1, 2)
        angles = None
        if self.is_rotary:
            half_Kd = grid_angles(rows, columns, self.head_size, self.rope_theta, x.device).flatten(1)
            angle_Kd = torch.cat([half_Kd, half_Kd], dim=1)
            angles = angle_Kd.cos(), angle_Kd.sin()
        for layer in self.layers:
            x_nKC = layer(x_nKC, angles, self.causal)
        return self.arranged(self.mlp(pixel_shuffle(x_nKC.unflatten(1, (rows, columns)), self.block, "v2")))
