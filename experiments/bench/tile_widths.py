"""What a tile's width is worth: all widths of Hopper's gate+up and projections at InternLM2-1.8B's sizes, CUDA graphs.

`python -m experiments.bench.tile_widths` on a GPU prints microseconds; `*` marks what kernels.tile_columns takes.
Its rule, rounds x (width + 64), was read off these figures.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from cupy_kernels import kernels
from cupy_kernels.launch import GATE_UP_COLUMNS, PROJECT_COLUMNS, launcher_for
from cupy_kernels.tiles import TileTable
from experiments.bench.kernels import Bench

HIDDEN, INTERMEDIATE, KV, TEXT = 2048, 8192, 1024, 64
VISUAL = (256, 1024, 3328, 4032)


def measure(bench: Bench, visual: int) -> dict[str, dict[int, float]]:
    """Operator -> width -> microseconds, the chosen width first."""
    run, D, F = launcher_for(bench.device), HIDDEN, INTERMEDIATE
    assert run is not None

    def matrix(*shape: int) -> Tensor:
        return (torch.randn(*shape, device=bench.device) / shape[-1] ** 0.5).bfloat16()

    table = TileTable.sorted((TEXT, visual), bench.device)
    x, h = matrix(TEXT + visual, D), matrix(TEXT + visual, F)
    gates, ups = [(matrix(F, D), matrix(F, D)) for _ in range(2)]
    project = partial(kernels.project, run, biases=(None, None), residual=None, tiles=table.tiles)
    operators: dict[str, tuple[Callable[[], Any], int, tuple[int, ...]]] = {
        "gate_up": (lambda: kernels.gate_up(run, x, gates, ups, table.tiles, False), 2 * F, GATE_UP_COLUMNS),
    }
    for name, rows, given in (("down", D, h), ("q", D, x), ("k", KV, x)):
        weights = matrix(rows, given.shape[1]), matrix(rows, given.shape[1])
        operators[name] = partial(project, x=given, weights=weights), rows, PROJECT_COLUMNS
    found: dict[str, dict[int, float]] = {}
    for name, (call, columns, widths) in operators.items():
        best = kernels.tile_columns(run.multiprocessors(bench.device), table.tiles.shape[0], columns, widths)
        found[name] = {}
        for width in sorted(widths, key=lambda width, best=best: width != best):
            with patch.object(kernels, "tile_columns", lambda *_, width=width: width):
                found[name][width] = round(1e6 * bench.seconds(bench.graph(call)), 1)
    return found


@torch.no_grad()
def main() -> None:
    bench = Bench(torch.device("cuda", 0), rounds=30)
    for visual in VISUAL:
        for name, times in measure(bench, visual).items():
            text = "  ".join(f"{width}{'*' * (i == 0)}: {time}" for i, (width, time) in enumerate(times.items()))
            print(f"{TEXT + visual:5} rows  {name:8} {text}")


if __name__ == "__main__":
    main()
