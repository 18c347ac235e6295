"""Runs grids through `mmframe ablate`, with what they need beforehand and do not need afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmframe.ablate.collect import COLUMNS, RESULTS, read_csv
from mmframe.ablate.grid import read_grid
from mmframe.ablate.table import CsvRow

REPOSITORY = Path(__file__).resolve().parents[2]
RUNS = Path("runs") / "claims"
"""Of the grids and of the warm starts that their recipes name; from the repository's root."""
WARM_START = Path(__file__).parent / "recipes" / "warm_start.yaml"
JOBS = {"h100": 8}
"""Runs at once; on CPUs two of one thread each: what is not a product of matrices then runs beside one."""


def warm_starts(seeds: Iterable[int], gpu: bool) -> int:
    """Trains the patch embedders that the grids start from, those that are not there yet; an exit code."""
    for seed in seeds:
        where = RUNS / "warm_start" / f"seed_{seed}"
        words = ["fit", "--config", str(WARM_START), f"--run-dir={where}"]
        words += [f"--seed_everything={seed}", f"--data.seed={seed}", *(["--trainer.accelerator=gpu"] if gpu else [])]
        if not (where / "done.json").is_file() and (code := _mmframe(words)):
            return code
    return 0


def run_grid(grid: Path, preset: str, jobs: int | None = None, dry: bool = False) -> int:
    """One grid, into the folder of its preset; an exit code. A second call goes on where the first was stopped."""
    words = ["ablate", os.path.relpath(grid), f"--preset={preset}", f"--out={RUNS / preset}"]
    words += ["--dry-run"] if dry else [f"--jobs={jobs or JOBS.get(preset, min(2, os.cpu_count() or 1))}"]
    begun = time.monotonic()
    code = _mmframe(words)
    print(f"claims: {grid.stem} {preset}: {(time.monotonic() - begun) / 60:.1f} minutes, exit code {code}", flush=True)
    return code


def results(grid: Path, preset: str) -> list[CsvRow]:
    """Rows of a grid's results.csv; none if it was not run."""
    file = RUNS / preset / read_grid(grid, preset).name / RESULTS
    return read_csv(file, COLUMNS) if file.is_file() else []


def drop_weights(rows: Sequence[CsvRow], preset: str) -> None:
    """Deletes the weights of runs that are done and measured: a gigabyte each."""
    done = {row["run"] for row in rows if row["role"] == "state" and row["value"] == "1"}
    for run in done:
        for weights in (RUNS / preset / "runs" / run).rglob("weights.safetensors"):
            weights.unlink()


def _mmframe(words: Sequence[str]) -> int:
    print(f"claims: mmframe {' '.join(words)}", flush=True)
    return subprocess.run([sys.executable, "-m", "mmframe", *words]).returncode
