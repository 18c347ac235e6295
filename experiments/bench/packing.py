"""What a packed row costs: documents in groups of similar length, one padded grid, and one mask over the whole row.

`python -m experiments.bench.packing` writes experiments/results/packing_cpu.json.

All three see the same documents in the same packed row, and differ in the layout alone, so the ratio is that of
attention's work and memory within a whole step. The dense mask is what mmframe did before; one grid is what a batch of
one document a row was padded to. Losses are compared before anything is timed.

T tokens, L longest document, d head_dim.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from components.backbones.decoder import attend
from experiments.bench.inference import SIZES, routed_net
from experiments.bench.timing import compare, ratio, write_result
from mmframe import layout as layout_file
from mmframe.batch import Batch, Sample
from mmframe.cli.malloc import keep_freed_memory
from mmframe.contracts import Backbone
from mmframe.kinds import TokenKind
from mmframe.layout import Group, Layout, may_attend
from mmframe.model import MultimodalLM
from mmframe.objectives import NextToken
from mmframe.plan import Plan

SHORTEST, LONGEST, SLOTS = 50, 700, 256
WAYS = ("groups", "one grid", "dense mask")
build_groups = Layout.build


def documents(tokens: int, seed: int) -> list[Sample]:
    """Documents of 50 to 700 tokens, together exactly `tokens`; half of those that can begin with a picture do."""
    generator = torch.Generator().manual_seed(seed)

    def upto(n: int) -> int:
        return int(torch.randint(n, (1,), generator=generator))

    lengths: list[int] = []
    while (left := tokens - sum(lengths)) > LONGEST + SHORTEST:
        lengths.append(SHORTEST + upto(min(LONGEST, left - SHORTEST) - SHORTEST + 1))
    lengths += [left] if left <= LONGEST else [left // 2, left - left // 2]
    samples = []
    for length in lengths:
        slots = SLOTS if length > SLOTS + SHORTEST and upto(2) else 0
        ids = torch.randint(SIZES["vocab_size"], (length,), generator=generator)
        kinds = [int(TokenKind.IMAGE)] * slots + [int(TokenKind.TEXT)] * (length - slots)
        labels = ids.roll(-1)
        labels[: max(0, slots - 1)] = labels[-1] = -100
        tiles = torch.randn(1, 3, 448, 448, generator=generator) if slots else None
        samples.append(Sample.from_ids(ids, kinds=kinds, labels=labels, tiles=tiles))
    return samples


def dense(batch: Batch, plan: Plan, backbone: Backbone, dtype: torch.dtype, cache: None = None) -> Layout:
    """The packed row as one sequence under one mask [1, 1, T, T]."""
    T = batch.num_tokens
    assert batch.num_rows == 1
    facts = torch.stack([batch.docs.long(), batch.branches.long(), batch.blocks.long(), batch.positions])[:, None]
    mask = may_attend(facts, facts, torch.zeros(1, dtype=torch.int64), backbone.attention)[:, None]
    in_order = torch.arange(T)
    to_grid, from_grid = (in_order if index is None else index for index in (plan.inverse, plan.order))
    made = build_groups(batch, plan, backbone, dtype)
    return replace(made, groups=(Group(1, T, mask),), to_grid=to_grid, from_grid=from_grid, holes=None, direct=False)


def one_grid(batch: Batch, plan: Plan, backbone: Backbone, dtype: torch.dtype, cache: None = None) -> Layout:
    """All documents padded to the longest."""
    with patch.object(layout_file, "length_groups", lambda lengths, masked: [torch.arange(len(lengths))]):
        return build_groups(batch, plan, backbone, dtype)


BUILDERS: dict[str, Any] = {"groups": build_groups, "one grid": one_grid, "dense mask": dense}


def step(net: MultimodalLM, batch: Batch, way: str) -> Tensor:
    """Forward and backward; returns the loss."""
    net.zero_grad(set_to_none=True)
    with patch.object(Layout, "build", BUILDERS[way]):
        total, weight = NextToken()(net, batch)
    loss = total / weight
    loss.backward()
    return loss.detach()


@torch.no_grad()
def forward(net: MultimodalLM, batch: Batch, way: str) -> None:
    with patch.object(Layout, "build", BUILDERS[way]):
        net(batch)


def attention(layout: Layout) -> Callable[[], None]:
    """The calls of one layer alone, forward and backward."""
    H, G, d = SIZES["num_heads"], SIZES["kv_heads"], SIZES["hidden_size"] // SIZES["num_heads"]
    given = [
        [torch.randn(g.num_rows, heads, g.length, d, requires_grad=True) for heads in (H, G, G)] for g in layout.groups
    ]

    def run() -> None:
        for group, (q, k, v) in zip(layout.groups, given, strict=True):
            torch.autograd.grad(attend(q, k, v, group.mask).sum(), [q, k, v])

    return run


def geometry(layouts: dict[str, Layout], lengths: Tensor) -> dict[str, Any]:
    """What is counted, not timed."""
    ideal = int(lengths.square().sum())
    return {
        way: {
            "grids, rows x length": [f"{g.num_rows} x {g.length}" for g in layout.groups],
            "scores over those of the documents": round(sum(g.cells * g.length for g in layout.groups) / ideal, 3),
            "masks, MiB": round(sum(g.mask.numel() for g in layout.groups if g.mask is not None) / 2**20, 2),
        }
        for way, layout in layouts.items()
    }


def peak_memory(way: str, args: argparse.Namespace) -> float:
    """MiB that a training step needs beyond model and batch, in a process of its own."""
    command = [sys.executable, "-m", "experiments.bench.packing", "--peak", way]
    command += [f"--{name}={getattr(args, name)}" for name in ("tokens", "threads", "seed")]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _print_peak(way: str, tokens: int, seed: int) -> None:
    net, batch = routed_net(), Batch.collate([Sample.packed(documents(tokens, seed))])
    step(net, Batch.collate([Sample.packed(documents(1024, seed))]), "groups")  # libraries make their buffers
    net.zero_grad(set_to_none=True)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _memory("VmRSS")
    step(net, batch, way)
    print(round(_memory("VmHWM") - before, 1))


def _memory(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def figures_of(seconds: dict[str, list[float]]) -> dict[str, Any]:
    others = [way for way in seconds if way != "groups"]
    return {
        "seconds": {way: round(statistics.median(times), 4) for way, times in seconds.items()},
        **{
            f"{way} over groups": {name: round(value, 3) for name, value in ratio(seconds, way, "groups").items()}
            for way in others
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="of the packed row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="write no result")
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        return _print_peak(args.peak, args.tokens, args.seed)
    keep_freed_memory()  # as the commands do

    net = routed_net()
    batch = Batch.collate([Sample.packed(documents(args.tokens, args.seed))])
    plan = net.router.plan(batch.kinds)
    layouts = {way: BUILDERS[way](batch, plan, net.backbone, torch.float32) for way in WAYS}
    losses = {way: step(net, batch, way) for way in WAYS}
    for loss in losses.values():
        torch.testing.assert_close(loss, losses["groups"], atol=0, rtol=1e-5)
    figures: dict[str, Any] = {
        "model": SIZES | {"parameters": sum(p.numel() for p in net.parameters())},
        "documents": sorted(batch.doc_lengths.tolist()),
        "dtype": "float32",
        "threads": args.threads,
        "rounds": args.rounds,
        "geometry": geometry(layouts, batch.doc_lengths),
    }

    def timed(runs: dict[str, Callable[[], Any]]) -> dict[str, Any]:
        return figures_of(compare(runs, args.rounds, warmup=1))

    figures["layout, host"] = timed(
        {w: lambda w=w: BUILDERS[w](batch, plan, net.backbone, torch.float32) for w in WAYS}
    )
    figures["attention of a layer, forward and backward"] = timed({way: attention(layouts[way]) for way in WAYS})
    figures["forward"] = timed({way: lambda way=way: forward(net, batch, way) for way in WAYS})
    figures["training step"] = timed({way: lambda way=way: step(net, batch, way) for way in WAYS})
    figures["peak memory of a training step beyond the model, MiB"] = {way: peak_memory(way, args) for way in WAYS}
    print(json.dumps(figures, indent=2))
    if not args.dry:
        print(write_result("packing_cpu", "python -m experiments.bench.packing", figures))


if __name__ == "__main__":
    main()
