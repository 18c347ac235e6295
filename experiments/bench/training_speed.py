"""A training step of each stage against its floor, against blending, and compiled.

`python -m experiments.bench.training_speed` writes experiments/results/training_speed_cpu.json. On a GPU, at the size
of the paper, the goal being 45 % MFU in S1.1:

    python -m experiments.bench.training_speed --device cuda --size 2b --documents 48 --rounds 20

All candidates share their weights and take turns, so that a ratio is one of the same minute. Operations are counted
while they are done (mmframe.flops); the floor of a step is its operations at the speed of a plain square matrix product
of the same round. The blend is what the released code does: both experts on all tokens, mixed by a mask, logits at all
positions; it freezes the same weights.

T tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.backbones.internlm2 import InternLM2
from components.backbones.llama import Llama
from components.freezing.delta_tuning import Everything, VisualAndAttention, VisualParameters
from components.patch_embedders.mono import MonoPatchEmbedder
from components.routers.modality import ModalityRouter, SharedRouter
from experiments.bench.routing import Blend
from experiments.bench.timing import compare, ratio, write_result
from mmframe.batch import IGNORE, Batch, Sample
from mmframe.callbacks.utilisation import peak_of
from mmframe.cli.malloc import keep_freed_memory
from mmframe.contracts import FreezingPolicy
from mmframe.flops import FlopCounter
from mmframe.freezing import freeze
from mmframe.kinds import TokenKind
from mmframe.model import MultimodalLM
from mmframe.objectives import NextToken
from mmframe.optim import AdamWSchedule

SMALL = dict(hidden_size=512, num_layers=8, num_heads=8, kv_heads=4, intermediate_size=2048, vocab_size=8192)
VISUAL, TEXTS = 256, (64, 256)
"""Visual tokens of a document, and its text tokens: a caption, a talk."""
SITES = ("q", "k", "v", "ffn")
STAGES: dict[str, FreezingPolicy] = {
    "s1_1, s1_2: visual parameters": VisualParameters(1e-6, 1e-6),
    "s1_3: and attention": VisualAndAttention(1e-6, 1e-6, 1e-6),
    "s2: everything": Everything(1e-6, 1e-6, 1e-6),
}
Run = Callable[[], None]


def make_net(size: str, device: str) -> MultimodalLM:
    """With q, k, v and FFN experts in every layer, random weights; bf16 on a GPU."""
    torch.manual_seed(0)
    with torch.device(device):
        backbone = InternLM2() if size == "2b" else Llama(tied_head=False, **SMALL)
        channels = {} if size == "2b" else {"channels": 320}
        embedder = MonoPatchEmbedder(hidden_size=backbone.hidden_size, **channels)
        net = MultimodalLM(backbone, embedder, ModalityRouter(dict.fromkeys(SITES, "all")))
    return net.to(torch.bfloat16) if device == "cuda" else net


def make_batch(net: MultimodalLM, documents: int, text: int) -> Batch:
    """One packed row: documents of a picture, 256 visual tokens, and of text, of which the last half is learnt."""
    generator = torch.Generator().manual_seed(1)
    kinds = torch.tensor([int(TokenKind.IMAGE)] * VISUAL + [int(TokenKind.TEXT)] * text)
    parts = []
    for _ in range(documents):
        ids = torch.randint(0, net.backbone.vocab_size, (len(kinds),), generator=generator)
        labels = ids.roll(-1)
        labels[: VISUAL + text // 2], labels[-1] = IGNORE, IGNORE
        tiles = torch.randn(1, 3, 448, 448, generator=generator)
        parts.append(Sample.from_ids(ids, kinds=kinds, labels=labels, tiles=tiles))
    batch = Batch.collate([Sample.packed(parts)])
    weight = next(net.parameters())
    batch.tiles = batch.tiles.to(weight.dtype)
    return batch.to(weight.device)


def blended(net: MultimodalLM, batch: Batch) -> MultimodalLM:
    """A model of the same parameters that blends, tokens in sequence order."""
    other = object.__new__(type(net))
    other.__dict__ = {**net.__dict__, "_modules": dict(net._modules)}
    backbone = object.__new__(type(net.backbone))
    backbone.__dict__ = {**net.backbone.__dict__, "_modules": dict(net.backbone._modules)}
    weight = next(net.parameters())
    mask_T1 = (batch.kinds == TokenKind.IMAGE)[:, None].to(weight.device, weight.dtype)
    layers = []
    for layer in net.backbone.layers:  # type: ignore[union-attr]
        twin = object.__new__(type(layer))
        twin.__dict__ = {**layer.__dict__, "_modules": dict(layer._modules)}
        for site in SITES:
            twin._modules[site] = Blend(getattr(layer, site), mask_T1)
        layers.append(twin)
    backbone._modules["layers"] = nn.ModuleList(layers)
    other._modules["backbone"] = backbone
    other.router = SharedRouter()
    return other


def blended_loss(net: MultimodalLM, batch: Batch) -> Tensor:
    logits_TV = net(batch, logits_at=torch.arange(batch.num_tokens, device=batch.ids.device)).logits
    return F.cross_entropy(logits_TV.float(), batch.labels, ignore_index=IGNORE)


def our_loss(net: MultimodalLM, batch: Batch) -> Tensor:
    total, weight = NextToken()(net, batch)
    return total / weight


def step(net: MultimodalLM, policy: FreezingPolicy, loss: Callable[[], Tensor]) -> Run:
    """Forward and backward, with the policy's weights training."""
    groups = policy.groups(net.router.experts)

    def run() -> None:
        net.requires_grad_(True)
        freeze(net, groups)
        net.zero_grad(set_to_none=True)
        loss().backward()

    return run


def optimiser_step(net: MultimodalLM, policy: FreezingPolicy) -> Run:
    """The optimiser alone, on gradients of ones."""
    groups = policy.groups(net.router.experts)
    net.requires_grad_(True)
    report = freeze(net, groups)
    named = {name: p for name, p in net.named_parameters() if p.requires_grad}
    optimizer = AdamWSchedule(warmup_steps=0, schedule="constant").configure(named, report.group_of, groups, 1)
    ones = {p: torch.ones_like(p) for p in named.values()}

    def run() -> None:
        for p in named.values():
            p.grad = ones[p]
        optimizer["optimizer"].step()

    return run


def counted(run: Run) -> int:
    counter = FlopCounter()
    with counter:
        run()
    return counter.total


def product(net: MultimodalLM, size: int) -> Run:
    weight = next(net.parameters())
    a, b = (torch.randn(size, size, dtype=weight.dtype, device=weight.device) for _ in range(2))
    return lambda: torch.mm(a, b)  # type: ignore[return-value]


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "2b"), default="small", help="67 M, or that of the paper")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--documents", type=int, default=1, help="in one packed row")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="also through torch.compile: minutes more")
    parser.add_argument("--dry", action="store_true", help="write no result")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.device == "cpu":
        keep_freed_memory()  # as the commands do

    net = make_net(args.size, args.device)
    first = next(net.parameters())
    figures: dict[str, Any] = {
        "size": args.size,
        "parameters": sum(p.numel() for p in net.parameters()),
        "dtype": str(first.dtype),
        "threads": torch.get_num_threads(),
        "rounds": args.rounds,
    }
    on_paper = None
    if args.device == "cuda":
        on_paper, source = peak_of(first.device, "bf16-true")
        figures["peak"] = {"TFLOP/s": on_paper and on_paper / 1e12, "source": source}
    optimising: dict[str, float] = {}
    for name, policy in STAGES.items():  # one after another: the states of all together do not fit beside a 2B model
        seconds = compare({name: optimiser_step(net, policy)}, args.rounds, warmup=1)
        optimising[name] = round(statistics.median(seconds[name]), 4)
        net.zero_grad(set_to_none=True)
    figures["optimiser, seconds"] = optimising
    for text in TEXTS:
        batch = make_batch(net, args.documents, text)
        figures[f"{VISUAL} visual, {text} text tokens"] = measured(net, batch, args.rounds, on_paper)
        write(figures, args)
    if args.compile:
        batch = make_batch(net, args.documents, TEXTS[0])
        figures["plain over compiled, first stage, first batch"] = compiled_ratio(net, batch, args.rounds)
        write(figures, args)


def measured(net: MultimodalLM, batch: Batch, rounds: int, on_paper: float | None) -> dict[str, Any]:
    """All stages on one batch, ours and blended, interleaved."""
    blend = blended(net, batch)
    on_gpu = batch.ids.is_cuda
    with torch.no_grad():
        close = {"atol": 1e-2 if on_gpu else 1e-4, "rtol": 1e-2 if on_gpu else 1e-4}
        torch.testing.assert_close(our_loss(net, batch).float(), blended_loss(blend, batch), **close)
    size = 8192 if on_gpu else 1024
    candidates: dict[str, Run] = {"product": product(net, size)}
    for stage, policy in STAGES.items():
        candidates[stage] = step(net, policy, lambda: our_loss(net, batch))
        candidates[f"blend, {stage}"] = step(net, policy, lambda: blended_loss(blend, batch))
    flops = {name: counted(run) for name, run in candidates.items()}
    seconds = compare(candidates, rounds, warmup=1)
    speeds = [flops["product"] / s for s in seconds["product"]]
    full = list(STAGES)[-1]
    figures: dict[str, Any] = {
        "tokens": batch.num_tokens,
        "product, TFLOP/s, median": round(statistics.median(speeds) / 1e12, 4),
    }
    for stage in STAGES:
        middle = statistics.median(seconds[stage])
        share = [flops[stage] / speed / s for speed, s in zip(speeds, seconds[stage], strict=True)]
        figures[stage] = {
            "seconds": round(middle, 4),
            "tokens per second": round(batch.num_tokens / middle, 1),
            "TFLOP": round(flops[stage] / 1e12, 4),
            "floor over measured": rounded({"median": statistics.median(share), "min": min(share), "max": max(share)}),
            "of full training, computed": round(flops[stage] / flops[full], 3),
            "of full training, measured": rounded(ratio(seconds, stage, full)),
            "blend over ours, computed": round(flops[f"blend, {stage}"] / flops[stage], 3),
            "blend over ours, measured": rounded(ratio(seconds, f"blend, {stage}", stage)),
        }
        if on_paper:
            figures[stage]["MFU"] = round(flops[stage] / middle / on_paper, 3)
    return figures


def compiled_ratio(net: MultimodalLM, batch: Batch, rounds: int) -> dict[str, float]:
    """The first stage's step as it is over the same through torch.compile, which takes a minute or more to begin."""
    fast: Any = torch.compile(net)
    policy = next(iter(STAGES.values()))
    plain, compiled = (step(net, policy, lambda model=model: our_loss(model, batch)) for model in (net, fast))
    return rounded(ratio(compare({"plain": plain, "compiled": compiled}, rounds), "plain", "compiled"))


def write(figures: dict[str, Any], args: argparse.Namespace) -> None:
    print(json.dumps(figures, indent=2), flush=True)
    if args.dry:
        return
    given = {name: getattr(args, name) for name in ("size", "device", "documents", "rounds", "threads")}
    words = " ".join(f"--{name} {value}" for name, value in given.items()) + " --compile" * args.compile
    print(write_result(f"training_speed_{args.device}", f"python -m experiments.bench.training_speed {words}", figures))


if __name__ == "__main__":
    main()
