"""Time to first token of the 2B models, monolithic against modular, and where it goes.

`python -m experiments.bench.first_token` writes experiments/results/first_token_cpu.json; with `--device cuda` also
decoding against the bytes that a token must read, to first_token_cuda.json.

Weights are random and are made in the dtype that they have: memory is that of one model, one after the other. It is
bf16, unless --dtype says otherwise: a CPU without bf16 instructions is seven times slower in it.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from components.backbones.internlm2 import InternLM2
from components.patch_embedders.internvit import InternViT
from components.patch_embedders.mono import MonoPatchEmbedder
from components.routers.modality import ModalityRouter, SharedRouter
from experiments.bench.timing import compare, write_result
from mmframe.batch import Sample
from mmframe.cli.malloc import keep_freed_memory
from mmframe.generation import StaticStep, Step, run_prompts
from mmframe.kinds import TokenKind
from mmframe.model import MultimodalLM

MODELS = {
    "monolithic": (MonoPatchEmbedder, lambda: ModalityRouter({"ffn": "all"})),
    "modular": (InternViT, SharedRouter),
}
TILES = {"256 + 64": 1, "1024 + 64": 4}
TEXT = 64


def random_net(name: str, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> MultimodalLM:
    """Built without memory, then filled: matrices with one block of noise again and again, norms with 1."""
    embedder, router = MODELS[name]
    with torch.device("meta"):
        backbone = InternLM2()
        net = MultimodalLM(backbone, embedder(backbone.hidden_size), router(), expert_backend="torch")
    return fill(net, device, dtype)


def fill(net: MultimodalLM, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> MultimodalLM:
    """A model on the meta device -> random weights on `device`."""
    net = net.to(dtype).to_empty(device=device)
    noise = (0.02 * torch.randn(2**22, generator=torch.Generator().manual_seed(0))).to(device, dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
                continue
            flat = parameter.view(-1)
            for start in range(0, len(flat), len(noise)):
                part = flat[start : start + len(noise)]
                part.copy_(noise[: len(part)])
    return net.requires_grad_(False).eval()


def sample(tiles: int, text: int = TEXT, vocab: int = 90000) -> Sample:
    """A picture of `tiles` tiles and text tokens after it."""
    slots = 256 * tiles
    kinds = [int(TokenKind.IMAGE)] * slots + [int(TokenKind.TEXT)] * text
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, vocab, (len(kinds),), generator=generator)
    pictures = torch.randn(tiles, 3, 448, 448, generator=generator) if tiles else None
    return Sample.from_ids(ids, kinds=kinds, tiles=pictures)


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def stopwatches(net: MultimodalLM, device: torch.device) -> Iterator[dict[str, float]]:
    """Seconds spent in the patch embedder, the layers and the head."""
    spent: dict[str, float] = {}
    begun: dict[str, float] = {}
    hooks = []
    backbone: Any = net.backbone
    parts: dict[str, nn.Module | None] = {"patch embedder": net.patch_embedder}
    parts |= {f"layer {i}": layer for i, layer in enumerate(backbone.layers)}
    for name, module in parts.items():
        assert module is not None
        part = "layers" if name.startswith("layer ") else name

        def before(*_: Any, part: str = part) -> None:
            begun[part] = now(device)

        def after(*_: Any, part: str = part) -> None:
            spent[part] = spent.get(part, 0.0) + now(device) - begun[part]

        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    head = backbone.head

    def timed_head(h_SD: Tensor) -> Tensor:
        start = now(device)
        logits_SV = head(h_SD)
        spent["head"] = now(device) - start
        return logits_SV

    backbone.head = timed_head  # a method, which hooks do not see
    yield spent
    del backbone.head
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def first_token(net: MultimodalLM, prompt: Sample, room: int = 1) -> Step:
    cache = net.backbone.new_cache(1, len(prompt) + room)
    run_prompts(net, [prompt], cache).argmax(-1).tolist()
    return Step(net, cache)


def time_to_first_token(net: MultimodalLM, sample: Sample, rounds: int, device: torch.device) -> dict[str, Any]:
    seconds = compare({"all": lambda: first_token(net, sample)}, rounds, warmup=1)["all"]
    shares: list[dict[str, float]] = []
    for _ in range(max(1, rounds // 2)):  # apart: on a GPU, looking at the clock costs time
        with stopwatches(net, device) as spent:
            start = now(device)
            first_token(net, sample)
            spent["rest"] = now(device) - start - sum(spent.values())
        shares.append(spent)
    parts = {name: round(statistics.median(share[name] for share in shares), 4) for name in shares[0]}
    return {
        "seconds": round(statistics.median(seconds), 4),
        "spread": [round(min(seconds), 4), round(max(seconds), 4)],
        "where, seconds": parts,
    }


def copy_bandwidth(device: torch.device) -> float:
    """Bytes/s read and written by the best copy of 2 GiB, on a CPU of 64 MiB."""
    source = torch.empty(2**31 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / min(compare({"copy": lambda: target.copy_(source)}, 10)["copy"])


def decoding(net: MultimodalLM, sample: Sample, tokens: int, device: torch.device) -> dict[str, Any]:
    """Tokens per second, step by step and as a captured graph, against the bytes that a token must read."""
    backbone: Any = net.backbone
    weights = sum(p.numel() for _, _, experts in backbone.sites() for p in experts["text"].parameters())
    weights += backbone.output.weight.numel() + backbone.norm.weight.numel()
    cached = 2 * backbone.num_layers * backbone.kv_heads * backbone.head_dim * (len(sample) + tokens // 2)
    bandwidth = copy_bandwidth(device)
    floor = bandwidth / (2 * (weights + cached))
    steps = {"plain": first_token(net, sample, tokens)}
    captured = StaticStep(net, backbone.new_cache(1, 1 << (len(sample) + tokens).bit_length()), cuda_graph=True)
    run_prompts(net, [sample], captured.cache)
    steps["graph"] = captured
    figures: dict[str, Any] = {"bandwidth of a copy, TB/s": round(bandwidth / 1e12, 3)}
    figures["floor, tokens per second"] = round(floor, 1)
    for name, step in steps.items():

        def run(step: Step = step) -> None:
            step.cache.truncate([len(sample)])
            ids = [1]
            for _ in range(tokens):
                ids = step(ids).argmax(-1).tolist()

        speed = tokens / statistics.median(compare({name: run}, 5)[name])
        figures[name] = {"tokens per second": round(speed, 1), "share of the floor": round(speed / floor, 3)}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="write no result")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="float32: 13 GB")
    parser.add_argument("--tokens", type=int, default=128, help="decoded, on a GPU")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as the commands do
    device = torch.device(args.device)
    figures: dict[str, Any] = {"dtype": args.dtype, "threads": args.threads, "rounds": args.rounds}
    for name in MODELS:
        net = random_net(name, device, getattr(torch, args.dtype))
        figures[name] = {"parameters": sum(p.numel() for p in net.parameters())}
        for tokens, tiles in TILES.items():
            figures[name][tokens] = time_to_first_token(net, sample(tiles), args.rounds, device)
            print(name, tokens, figures[name][tokens], flush=True)
        if device.type == "cuda":
            figures[name]["decoding after 1024 + 64"] = decoding(net, sample(4), args.tokens, device)
        del net
        gc.collect()
    figures["modular over monolithic"] = {
        tokens: round(figures["modular"][tokens]["seconds"] / figures["monolithic"][tokens]["seconds"], 3)
        for tokens in TILES
    }
    print(json.dumps(figures, indent=2))
    command = "python -m experiments.bench.first_token" + (f" --device {device}" if device.type == "cuda" else "")
    command += "" if args.dtype == "bfloat16" else f" --dtype {args.dtype} --rounds {args.rounds}"
    if not args.dry:
        print(write_result(f"first_token_{device.type}", command, figures))


if __name__ == "__main__":
    main()
