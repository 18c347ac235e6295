"""Which operator is worth its kernel on which device: by a table of measurements, never by hope.

measured.json holds, for each device that was measured, how many times faster than cuBLAS on slices each operator was at
each number of rows. `experiments/bench/gpu_check.sh` writes it. A device that is not there runs on torch under
`auto`; asking for `cupy` runs the kernels everywhere.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import torch

TABLE = Path(__file__).with_name("measured.json")
OPERATORS = ("project", "ffn", "decode_ffn")


@functools.cache
def table() -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Device -> operator -> (rows, times faster than torch)."""
    return json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}


@functools.cache
def device_name() -> str:
    """Name of the first CUDA device, or ``cpu``."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def measured(device: str) -> bool:
    """Whether anything was measured on this device."""
    return bool(table().get(device))


@functools.cache
def worth(op: str, rows: int, device: str) -> bool:
    """Whether the kernel was faster than torch at the measured number of rows nearest to this one.

    Args:
        op: One of OPERATORS.
        rows: Of the batch.
        device: Name of the device.
    """
    points = table().get(device, {}).get(op, [])
    if not points or not rows:
        return False
    _, ratio = min(points, key=lambda point: abs(math.log(point[0] / rows)))
    return ratio > 1.0
