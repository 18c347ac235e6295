"""The fused kernels against every other way, and against the floor.

`python -m experiments.bench.kernels` on a CUDA device writes experiments/results/kernels_DEVICE.json and its plots;
`experiments/bench/gpu_check.sh` does that after the correctness checks. `--tiny --device cpu` goes the same way in
seconds, with the torch reference in place of the kernels: nothing of it is a result.

Every figure is a median, all in one run; floors are computed from ceilings that the same run measures.

T rows of the batch, D hidden, F intermediate.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cupy_kernels import selection
from cupy_kernels.kernels import gate_up
from cupy_kernels.launch import launcher_for
from cupy_kernels.ops import decode_ffn, ffn, project
from cupy_kernels.tiles import TileTable
from experiments.bench.kernel_rivals import (
    Routed,
    blend,
    candidates,
    plain_ffn,
    random_weights,
    swiglu_up,
)
from experiments.bench.timing import device_name

RESULTS = Path(__file__).resolve().parents[1] / "results"
FULL = dict(hidden=2048, intermediate=8192, kv=1024, prompts=(256, 1024, 3328), text=64, training=4096, layers=4)
TINY = dict(hidden=32, intermediate=64, kv=16, prompts=(16, 40), text=8, training=48, layers=2)
Figures = dict[str, Any]
GRAPH = ", graph"
"""After the name of a way that was replayed as a CUDA graph, so that the host's launches are not in its time."""


class Bench:
    """Times calls on one device.

    Args:
        device: Where.
        rounds: Calls that are timed, after a warm-up.
    """

    def __init__(self, device: torch.device, rounds: int) -> None:
        self.device, self.rounds, self.cuda = device, rounds, device.type == "cuda"
        self.bandwidth, self.flops = 1.0, 1.0

    def seconds(self, run: Callable[[], Any], calls: int = 1) -> float:
        """Median time of one of `calls` that `run` makes."""
        for _ in range(3):
            run()
        times = []
        for _ in range(self.rounds):
            if self.cuda:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                run()
                end.record()
                torch.cuda.synchronize()
                times.append(start.elapsed_time(end) / 1e3)
            else:
                begun = time.perf_counter()
                run()
                times.append(time.perf_counter() - begun)
        return statistics.median(times) / calls

    def graph(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """The same as a CUDA graph, so that the host's launches are not what is measured."""
        if not self.cuda:
            return run
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            run()
        return captured.replay

    def both(self, ways: dict[str, Callable[[], Any]], waiting: Sequence[str] = ()) -> dict[str, float]:
        """Each way launched by Python and as a CUDA graph; those `waiting` for the device cannot be captured."""
        captured = {name + GRAPH: self.graph(way) for name, way in ways.items() if name not in waiting}
        return {name: self.seconds(way) for name, way in (ways | captured).items()}

    def ceilings(self, size: int) -> Figures:
        """Copy bandwidth and the rate of a square bf16 product: what floors are computed from."""
        source = torch.empty(2**31 if self.cuda else 2**20, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        self.bandwidth = 2 * source.numel() / self.seconds(lambda: target.copy_(source))
        a, b = (torch.randn(size, size, device=self.device).bfloat16() for _ in range(2))
        self.flops = 2 * size**3 / self.seconds(lambda: a @ b)
        return {"copy, TB/s": round(self.bandwidth / 1e12, 4), f"{size}^3 bf16, TFLOP/s": round(self.flops / 1e12, 2)}

    def floor(self, flops: float, size: float) -> float:
        """Seconds that neither arithmetic nor memory can go below."""
        return max(flops / self.flops, size / self.bandwidth)

    def row(self, floor: float, flops: float, times: dict[str, float]) -> Figures:
        """One line of the table: microseconds, and how the kernels stand."""
        figures: Figures = {f"{name}, us": round(1e6 * t, 2) for name, t in times.items()}
        figures["floor, us"] = round(1e6 * floor, 2)
        figures["kernels, share of the floor"] = round(floor / times["kernels"], 3)
        figures["kernels, TFLOP/s"] = round(flops / times["kernels"] / 1e12, 2)
        if "kernels" + GRAPH in times:
            figures["kernels in a graph, share of the floor"] = round(floor / times["kernels" + GRAPH], 3)
        for name, seconds in times.items():
            base = "kernels" + GRAPH * name.endswith(GRAPH)  # like is compared with like
            if name != base:
                figures[f"{name.removesuffix(GRAPH)} over {base}"] = round(seconds / times[base], 3)
        return figures


def prefill(bench: Bench, sizes: dict[str, Any]) -> Figures:
    """gate+up+SwiGLU alone, the FFN block, and expert q, k, v; text rows stream a whole expert each time."""
    D, N, text = sizes["hidden"], sizes["intermediate"], sizes["text"]
    figures: Figures = {}
    for visual in sizes["prompts"]:
        given = Routed.random(visual, text, D, N, bench.device)
        T = visual + text
        table = TileTable.sorted(given.sizes, bench.device)
        pieces = given.x.split(given.sizes)
        times = bench.both(
            {"kernels": partial(_kernel_gate_up, given, table), "slices": partial(_slices_gate_up, given)}
        )
        flops, size = 4 * T * D * N, 2 * (2 * 2 * D * N + T * (D + N))
        figures[f"gate+up+SwiGLU, {visual} + {text}"] = bench.row(bench.floor(flops, size), flops, times)

        times = bench.both(candidates(given), waiting=("mask",))
        flops, size = 6 * T * D * N, 2 * (2 * 3 * D * N + 2 * T * D + 2 * T * N)
        figures[f"FFN block, {visual} + {text}"] = bench.row(bench.floor(flops, size), flops, times)

        wide = D + 2 * sizes["kv"]
        weights = [random_weights(D, wide, bench.device)[e][0] for e in (0, 1)]
        times = bench.both(
            {
                "kernels": lambda x=given.x, w=weights, t=table: project(x, w, t),
                "slices": lambda p=pieces, w=weights: torch.cat([x @ one.T for x, one in zip(p, w, strict=True)]),
            }
        )
        flops, size = 2 * T * D * wide, 2 * (2 * D * wide + T * (D + wide))
        figures[f"q, k, v, {visual} + {text}"] = bench.row(bench.floor(flops, size), flops, times)
    return figures


def _slices_gate_up(given: Routed) -> list[Tensor]:
    pieces = zip(given.x.split(given.sizes), given.weights, strict=True)
    return [swiglu_up(piece, expert) for piece, expert in pieces]


def _kernel_gate_up(given: Routed, table: TileTable) -> Any:
    run = launcher_for(given.x.device)
    if run is None:  # the way can be tried where no kernel runs
        return _slices_gate_up(given)
    (gate0, up0, _), (gate1, up1, _) = given.weights
    return gate_up(run, given.x, (gate0, gate1), (up0, up1), table.tiles, keep=False)


def decoding(bench: Bench, sizes: dict[str, Any]) -> Figures:
    """The FFN of a decoding step as a CUDA graph, over several layers' weights, more than the L2 holds."""
    D, N, layers = sizes["hidden"], sizes["intermediate"], sizes["layers"]
    stack = [random_weights(D, N, bench.device) for _ in range(layers)]
    norm = torch.ones(D, device=bench.device).bfloat16()
    figures: Figures = {}
    for text, image in ((1, 0), (4, 0), (8, 0), (2, 2)):
        x, delta = (torch.randn(text + image, D, device=bench.device).bfloat16() for _ in range(2))

        def fused(x: Tensor = x, delta: Tensor = delta, text: int = text) -> Tensor:
            for weights in stack:
                x = decode_ffn(x, delta, (norm, norm), weights, text, 1e-5)
            return x

        def eager(x: Tensor = x, delta: Tensor = delta, sizes: tuple[int, int] = (text, image)) -> Tensor:
            for weights in stack:
                x = x + delta
                normed = torch.nn.functional.rms_norm(x, (D,), norm, 1e-5)
                pairs = [(p, w) for p, w in zip(normed.split(sizes), weights, strict=True) if len(p)]
                x = x + torch.cat([plain_ffn(piece, expert) for piece, expert in pairs])
            return x

        times = {
            "kernels": bench.seconds(bench.graph(fused), layers),
            "slices": bench.seconds(bench.graph(eager), layers),
        }
        experts, T = (text > 0) + (image > 0), text + image
        flops, size = 6 * T * D * N, 2 * (experts * 3 * D * N + 4 * T * D + 2 * T * N)
        figures[f"{T} tokens, {text} text"] = bench.row(bench.floor(flops, size), flops, times)
    return figures


def training(bench: Bench, sizes: dict[str, Any]) -> Figures:
    """FFN forward and backward, both experts trained and the text expert frozen, with what is kept in between."""
    D, N, T = sizes["hidden"], sizes["intermediate"], sizes["training"]
    text = T // 16  # as in a packed row with pictures
    figures: Figures = {}
    for what, frozen in (("both experts train", False), ("text expert frozen", True)):
        given = Routed.random(T - text, text, D, N, bench.device)
        table = TileTable.sorted(given.sizes, bench.device)
        x = given.x.requires_grad_()
        given.mixed.requires_grad_()
        for number, expert in enumerate(given.weights):
            for weight in expert:
                weight.requires_grad_(not (frozen and number == 0))
        dy = torch.randn_like(x)
        leaves = (x, given.mixed, *(w for expert in given.weights for w in expert))

        def slices(x: Tensor = x, given: Routed = given) -> Tensor:
            pieces = zip(x.split(given.sizes), given.weights, strict=True)
            return torch.cat([plain_ffn(piece, expert) for piece, expert in pieces])

        ways: dict[str, Callable[[], Tensor]] = {
            "kernels": lambda x=x, w=given.weights, t=table: ffn(x, None, w, t),
            "kernels, recomputing": lambda x=x, w=given.weights, t=table: ffn(x, None, w, t, recompute=True),
            "slices": slices,
            "blend": lambda given=given: blend(given),
        }
        times, kept = {}, {}
        for name, way in ways.items():

            def step(way: Callable[[], Tensor] = way, dy: Tensor = dy, leaves: Sequence[Tensor] = leaves) -> None:
                for leaf in leaves:
                    leaf.grad = None
                way().backward(dy)

            times[name] = bench.seconds(step)
            kept[name] = _kept(way, leaves)
        share = 2 + (T - text) / T if frozen else 3
        flops = share * 6 * T * D * N
        size = 2 * (2 * 3 * D * N * 3 + 2 * T * D + 6 * T * N)
        row = bench.row(bench.floor(flops, size), flops, times)
        figures[what] = row | {f"{name}, MiB kept": round(size / 2**20, 2) for name, size in kept.items()}
    return figures


def _kept(way: Callable[[], Tensor], leaves: Sequence[Tensor]) -> int:
    """Bytes that autograd keeps for the backward beside the leaves themselves, each storage once."""
    given = {leaf.untyped_storage().data_ptr() for leaf in leaves}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in given:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        way()
    return sum(sizes.values())


def models(bench: Bench, tiny: bool) -> Figures:
    """Time to first token and decoding of the 2B models: monolithic by both backends, and the modular one."""
    from experiments.bench.kernel_models import measure

    return measure(bench.device, tiny)


def select(figures: Figures) -> dict[str, list[list[float]]]:
    """Rows and how many times faster the kernels were than slices, for each operator: cupy_kernels/measured.json."""

    def points(group: str, prefix: str) -> list[list[float]]:
        found = []
        for name, row in figures[group].items():
            numbers = [int(n) for n in re.findall(r"\d+", name.removeprefix(prefix))]
            rows = numbers[0] if group == "decoding" else sum(numbers[:2])
            if name.startswith(prefix):
                found.append([rows, row["slices over kernels"]])
        return sorted(found)

    ways = {"project": ("prefill", "q, k, v, "), "ffn": ("prefill", "FFN block, "), "decode_ffn": ("decoding", "")}
    assert set(ways) == set(selection.OPERATORS)
    return {op: points(*where) for op, where in ways.items()}


def record(figures: Figures) -> Path:
    """Writes the result, its plots, and what `auto` reads; returns the result's path."""
    from experiments.bench.kernel_plots import draw

    name = re.sub(r"\W+", "_", figures["device"].lower()).strip("_")
    path = RESULTS / f"kernels_{name}.json"
    path.write_text(json.dumps(figures, indent=2) + "\n")
    draw(figures, path.with_suffix(""))
    if {"prefill", "decoding"} <= set(figures):
        table = json.loads(selection.TABLE.read_text()) | {figures["device"]: select(figures)}
        selection.TABLE.write_text(json.dumps(table, indent=1) + "\n")
    return path


def versions() -> dict[str, str]:
    found = {"torch": torch.__version__, "CUDA": str(torch.version.cuda)}
    try:
        import cupy
        from cupy.cuda import nvrtc

        found |= {"cupy": cupy.__version__, "nvrtc": ".".join(map(str, nvrtc.getVersion()))}
    except ImportError:
        pass
    return found


def commit() -> str:
    """The code's revision; MMFRAME_COMMIT names it where only the files were copied."""
    if named := os.environ.get("MMFRAME_COMMIT"):
        return named
    try:
        words = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(words, capture_output=True, text=True, check=True, cwd=RESULTS).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def run(device: torch.device, tiny: bool, rounds: int, parts: list[str], keep: Path | None = None) -> Figures:
    """Measures the parts. One that fails is named under `failed`; `keep` is written anew after each."""
    torch.manual_seed(0)
    bench, sizes = Bench(device, rounds), TINY if tiny else FULL
    figures: Figures = {
        "command": "experiments/bench/gpu_check.sh",
        "device": device_name() if device.type == "cuda" else "cpu",
        "commit": commit(),
        "versions": versions(),
        "when": time.strftime("%Y-%m-%d"),
        "shapes": {key: list(v) if isinstance(v, tuple) else v for key, v in sizes.items()},
        "ceilings": bench.ceilings(64 if tiny else 8192),
    }
    steps: dict[str, Callable[[], Figures]] = {
        "prefill": lambda: prefill(bench, sizes),
        "decoding": lambda: decoding(bench, sizes),
        "training": lambda: training(bench, sizes),
        "models": lambda: models(bench, tiny),
    }
    for name in parts:
        begun = time.perf_counter()
        try:
            figures[name] = steps[name]()
        except Exception as error:  # a device is lent for minutes: the other parts still count
            figures.setdefault("failed", {})[name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
            continue
        finally:
            if keep:
                keep.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
        print(json.dumps(figures[name], indent=1), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the way; no result")
    parser.add_argument("--parts", nargs="+", default=["prefill", "decoding", "training", "models"])
    parser.add_argument("--checks", type=Path, help="JSON of the correctness checks, to go into the result")
    parser.add_argument("--sanitizer", type=Path, help="lines of compute-sanitizer's verdicts, likewise")
    parser.add_argument("--keep", type=Path, help="what is measured so far, should the run be cut off")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    args = parser.parse_args()
    figures = run(torch.device(args.device), args.tiny, args.rounds, args.parts, args.keep)
    if args.checks:
        figures["checks"] = json.loads(args.checks.read_text())
    if args.sanitizer:
        figures["compute-sanitizer"] = dict(line.split(": ", 1) for line in args.sanitizer.read_text().splitlines())
    if not args.dry:
        print(record(figures))
    sys.exit(1 if "failed" in figures else 0)


if __name__ == "__main__":
    main()
