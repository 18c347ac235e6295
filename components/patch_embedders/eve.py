"""The vision tokenizer of EVE: a conv, pooled by attention, with a class token that looks at the whole tile.

n tiles, C channels, g x g patches of a cell, h x w cells, Q queries, K keys, D hidden size of the backbone.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from components.patch_embedders.common import patches
from components.patch_embedders.grid import GridEmbedder, learned
from mmframe.errors import UserError
from mmframe.registry import register


class Pooling(nn.Module):
    """query + proj(attention of the query over keys). The scale is that of all channels, not of a head, as released."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_norm, self.q = nn.LayerNorm(channels), nn.Linear(channels, channels, bias=False)
        self.kv_norm, self.kv = nn.LayerNorm(channels), nn.Linear(channels, 2 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, query_nQC: Tensor, x_nKC: Tensor) -> Tensor:
        split = (self.q(self.q_norm(query_nQC)), *self.kv(self.kv_norm(x_nKC)).chunk(2, dim=-1))
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in split)
        y = F.scaled_dot_product_attention(q, k, v, scale=query_nQC.shape[-1] ** -0.5)
        return query_nQC + self.proj(y.transpose(1, 2).flatten(2))


@register("patch_embedder")
class EVEPatchEmbedder(GridEmbedder):
    """Conv over patches -> each cell pooled by attention -> class token, row ends -> Linear, GELU, Linear.

    A cell's query is the mean of its patches, and the class token is a query over all cells. What stands around the
    grid goes through the MLP too. Source: EVE (arXiv 2406.11832; its code, EVEv1/.../vision_tokenizer.py); defaults are
    its 7B model, 30.0 M parameters beside Vicuna's 4,096. There a picture keeps its shape, up to 672 px; here it comes
    in tiles. The teacher that EVE learns from and drops is an auxiliary loss, no part of this.

    Args:
        hidden_size: D; filled in from the backbone.
        image_size: Edge of a tile, pixels.
        patch_size: Edge of a patch, pixels.
        merge: g, edge of a cell, patches.
        channels: C.
        num_heads: Heads of both poolings; divides channels.
        around: Of GridEmbedder.
    """

    toy_args = dict(image_size=8, patch_size=2, channels=8, num_heads=2)

    def __init__(
        self,
        hidden_size: int,
        image_size: int = 672,
        patch_size: int = 14,
        merge: int = 2,
        channels: int = 1024,
        num_heads: int = 8,
        **around: Any,
    ) -> None:
        super().__init__(hidden_size, image_size, patch_size * merge, class_token=True, row_end=True, **around)
        if channels % num_heads:
            raise UserError(f"patch_embedder: channels {channels} do not divide into {num_heads} heads")
        self.merge = merge
        for name, parameter in list(self.named_parameters()):  # what stands around the grid, of the size before the MLP
            setattr(self, name, learned(len(parameter), channels))
        self.conv = nn.Conv2d(3, channels, patch_size, stride=patch_size, bias=False)
        self.pool_cell, self.pool_tile = Pooling(channels, num_heads), Pooling(channels, num_heads)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))

    def tokens(self, tiles: Tensor) -> Tensor:
        n, _, height, width = tiles.shape
        if n == 0:  # no kernel of attention need make sense of nothing: run a blank tile and keep none of it
            return self.tokens(tiles.new_zeros(1, 3, height, width))[:0]
        x_nhwKC = patches(self.conv(tiles), self.merge).flatten(4).transpose(3, 4)
        rows, columns = x_nhwKC.shape[1:3]
        x_cKC = x_nhwKC.flatten(0, 2)  # c: cells of all tiles
        cells_nhwC = self.pool_cell(x_cKC.mean(1, keepdim=True), x_cKC).view(n, rows, columns, -1)
        assert self.class_token is not None
        class_n1C = self.pool_tile(self.class_token.expand(n, 1, -1), cells_nhwC.flatten(1, 2))
        return self.mlp(self.arranged(cells_nhwC, class_n1C))
