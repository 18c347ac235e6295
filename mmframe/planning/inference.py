"""Generation at the roofline: what arithmetic and bandwidth allow, and no program is faster than that."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmframe.model import MultimodalLM
from mmframe.planning.gpus import Gpu


@dataclass(frozen=True)
class Roofline:
    """One row at a time.

    Attributes:
        prompt: Tokens.
        first_token: Seconds.
        decode: Tokens a second, after the prompt.
        text_weights: Bytes that a text token reads.
        cache_a_token: Bytes of keys and values that a token leaves.
    """

    prompt: int
    first_token: float
    decode: float
    text_weights: int
    cache_a_token: int


def roofline(net: MultimodalLM, prompt: int, flops: float, unit: Gpu, size: int = 2) -> Roofline:
    """Time to the first token is the longer of arithmetic and one reading of the weights; a decoding step reads the
    text path and the cache.

    Args:
        net: On the meta device.
        prompt: Its tokens.
        flops: Of its forward.
        unit: The GPU.
        size: Bytes of a weight; 2 is bf16.
    """
    everything = size * sum(p.numel() for p in net.parameters())
    text = size * text_path(net)
    with torch.device("meta"):
        cache = net.backbone.new_cache(1, 1)
    row = size * sum(tensor.numel() for tensor in (*cache.keys, *cache.values))
    first = max(flops / unit.flops, everything / unit.bandwidth)
    return Roofline(prompt, first, unit.bandwidth / (text + row * prompt), text, row)


def text_path(net: MultimodalLM) -> int:
    """Parameters that one text token reads: of an embedding that is no head one row, of experts the text ones."""
    tied = getattr(net.backbone, "output", None) is None
    return sum(
        p.shape[1] if name == "backbone.embedding.weight" and not tied else p.numel()
        for name, p in net.named_parameters()
        if ".visual." not in name and not name.startswith("patch_embedder.")
    )
