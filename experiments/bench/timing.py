"""Fair timings on a machine that others may use: candidates take turns, medians, ratios within one run."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def device_name() -> str:
    """Name of the processor that the figures belong to."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def compare(candidates: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each candidate in each round; in a round every candidate runs once, one after another."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(warmup + rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """Median, smallest and largest of slow / fast, round by round."""
    pairs = [s / f for s, f in zip(seconds[slow], seconds[fast], strict=True)]
    return {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}


def matmul_peak(dtype: torch.dtype = torch.bfloat16, size: int = 2048, rounds: int = 8) -> float:
    """FLOP/s of the best square matrix product: the floor that everything else is measured against."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best = min(compare({"mm": lambda: a @ b}, rounds)["mm"])
    return 2 * size**3 / best


def write_result(name: str, command: str, figures: Mapping[str, Any]) -> Path:
    """experiments/results/NAME.json with device, date, torch and the command that gives it again."""
    path = Path(__file__).resolve().parents[1] / "results" / f"{name}.json"
    record = {
        "command": command,
        "device": device_name(),
        "torch": torch.__version__,
        "when": time.strftime("%Y-%m-%d"),
        **figures,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path
