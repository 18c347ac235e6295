"""The 2B models whole: time to first token and decoding, by the fused kernels and by torch, beside the modular one."""

from __future__ import annotations

import gc
import statistics
from typing import Any

import torch

from components.backbones.internlm2 import InternLM2
from components.patch_embedders.internvit import InternViT
from components.patch_embedders.mono import MonoPatchEmbedder
from components.routers.modality import ModalityRouter, SharedRouter
from experiments.bench.first_token import copy_bandwidth, fill, first_token, sample
from experiments.bench.timing import compare
from mmframe.generation import StaticStep, run_prompts
from mmframe.model import MultimodalLM

QKV_FFN = {"q": "all", "k": "all", "v": "all", "ffn": "all"}
WAYS = {
    "monolithic, kernels": (MonoPatchEmbedder, lambda: ModalityRouter(QKV_FFN), "cupy"),
    "monolithic, torch": (MonoPatchEmbedder, lambda: ModalityRouter(QKV_FFN), "torch"),
    "modular": (InternViT, SharedRouter, "torch"),
}
PROMPTS = {"256 + 64": (1, 64), "1024 + 64": (4, 64), "3328 + 64": (13, 64)}
"""Tiles of 256 visual tokens, and text after them."""
CONTEXTS = {128: (0, 128), 1088: (4, 64), 3392: (13, 64)}
TINY: dict[str, Any] = dict(
    hidden_size=64, num_layers=2, num_heads=4, kv_heads=2, intermediate_size=128, vocab_size=128
)


def build(way: str, device: torch.device, tiny: bool) -> MultimodalLM:
    embedder, router, backend = WAYS[way]
    if device.type == "cpu" and backend == "cupy":
        backend = "torch"  # the way can be tried where no kernel runs
    with torch.device("meta"):
        backbone = InternLM2(**TINY) if tiny else InternLM2()
        small: dict[str, Any] = {}
        if tiny:
            small = dict(channels=32, num_layers=1, num_heads=2, intermediate_size=32)
            small = small if embedder is InternViT else dict(channels=32)
        net = MultimodalLM(backbone, embedder(backbone.hidden_size, **small), router(), expert_backend=backend)
    return fill(net, device)


def measure(device: torch.device, tiny: bool, rounds: int = 10, tokens: int = 64) -> dict[str, Any]:
    """Seconds to the first token of each prompt, and tokens per second of a captured step at each context."""
    rounds, tokens = (2, 4) if tiny else (rounds, tokens)
    cuda = device.type == "cuda"
    figures: dict[str, Any] = {}
    for way in WAYS:
        net = build(way, device, tiny)
        figures[way] = {"parameters": sum(p.numel() for p in net.parameters())}
        vocab = net.backbone.vocab_size
        for name, (tiles, text) in list(PROMPTS.items())[: 1 if tiny else None]:
            given = sample(tiles, text, vocab)
            times = compare({"first": lambda n=net, g=given: first_token(n, g)}, rounds)["first"]
            figures[way][f"first token, {name}, ms"] = round(1e3 * statistics.median(times), 3)
        if way == "modular" and not tiny:  # decoding is that of the same LLM
            del net
            gc.collect()
            continue
        for context, (tiles, text) in list(CONTEXTS.items())[: 1 if tiny else None]:
            given = sample(tiles, text, vocab)
            step = StaticStep(net, net.backbone.new_cache(1, 1 << (context + tokens).bit_length()), cuda_graph=cuda)
            run_prompts(net, [given], step.cache)

            def decode(step: StaticStep = step, length: int = len(given)) -> None:
                step.cache.truncate([length])
                ids = [1]
                for _ in range(tokens):
                    ids = step(ids).argmax(-1).tolist()

            seconds = statistics.median(compare({"decode": decode}, 3)["decode"]) / tokens
            figures[way][f"decoding at {context}, tokens/s"] = round(1 / seconds, 1)
            figures[way][f"decoding at {context}, share of the floor"] = round(floor(net, context, device) / seconds, 3)
        del net
        gc.collect()
    for name in list(PROMPTS)[: 1 if tiny else None]:
        key = f"first token, {name}, ms"
        ours = figures["monolithic, kernels"][key]
        figures[f"modular over monolithic, {name}"] = round(figures["modular"][key] / ours, 3)
        figures[f"torch over kernels, {name}"] = round(figures["monolithic, torch"][key] / ours, 3)
    return figures


def floor(net: MultimodalLM, context: int, device: torch.device) -> float:
    """Seconds to read the text experts, the head and the cache once, at the bandwidth of a copy."""
    backbone: Any = net.backbone
    weights = sum(p.numel() for _, _, experts in backbone.sites() for p in experts["text"].parameters())
    weights += backbone.output.weight.numel() + backbone.norm.weight.numel()
    cached = 2 * backbone.num_layers * backbone.kv_heads * backbone.head_dim * context
    return 2 * (weights + cached) / copy_bandwidth(device)
