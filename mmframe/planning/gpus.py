"""The table of GPUs in gpus.json. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from mmframe.errors import UserError, suggest


@dataclass(frozen=True)
class Gpu:
    """One unit that trains: a GPU, or a core of a CPU.

    Attributes:
        name: In full.
        flops: Peak of dense bf16 matrix products, FLOP/s.
        memory: Bytes.
        bandwidth: Of its memory, bytes/s.
        source: Where the figures are from.
        device: cpu or cuda.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    source: str
    device: str


def _table() -> dict[str, Any]:
    return json.loads((files("mmframe.planning") / "gpus.json").read_text(encoding="utf-8"))


def gpu(name: str) -> Gpu:
    """A GPU by its short name.

    Raises:
        UserError: it is not in the table.
    """
    units = _table()["units"]
    if name not in units:
        raise UserError(f"plan: --gpu {name!r} is not in mmframe/planning/gpus.json; {suggest(name, units)}")
    return Gpu(**units[name], device="cpu" if name == "cpu" else "cuda")


def tiles_of_a_core() -> float:
    """Tiles a second that one loader core makes ready."""
    return _table()["loader"]["tiles"]
