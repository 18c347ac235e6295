"""metrics.jsonl: one JSON object per logged step, only ever appended to."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger


class JsonlLogger(Logger):
    """Appends metrics to a file, also when the run is continued.

    Each line holds `step`, `attempt` (1 for the first run in this directory, 2 for the one that continued it, ...),
    `time` (Unix seconds) and the metrics. Steps that are repeated after a kill stand twice; `read_metrics` keeps the
    later ones.

    Args:
        folder: The run directory.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.file = Path(folder) / "metrics.jsonl"
        self._attempt: int | None = None

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.file.parent)

    @property
    def log_dir(self) -> str:
        return str(self.file.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._attempt is None:
            self._attempt = self._open()
        values = {key: _plain(value) for key, value in metrics.items()}
        line = json.dumps({"step": step, "attempt": self._attempt, "time": round(time.time(), 2), **values})
        with open(self.file, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def _open(self) -> int:
        """Number of this attempt. A line that a kill cut off is ended, so that the next one stands alone."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if not self.file.is_file() or not self.file.stat().st_size:
            return 1
        lines = self.file.read_bytes()
        if not lines.endswith(b"\n"):
            with open(self.file, "ab") as stream:
                stream.write(b"\n")
        return 1 + max((row.get("attempt", 1) for row in _rows(lines.decode("utf-8", "replace"))), default=0)


def _plain(value: Any) -> Any:
    number = float(value.item() if hasattr(value, "item") else value)
    if not math.isfinite(number):
        return str(number)  # JSON has no NaN; float("nan") reads it back
    return int(number) if number.is_integer() and abs(number) < 1e15 and isinstance(value, int) else number


def _rows(text: str) -> list[dict[str, Any]]:
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut off by a kill
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_metrics(file: str | Path) -> list[dict[str, Any]]:
    """The metrics of a run, one row per step, in order; where attempts overlap the later one counts.

    Args:
        file: metrics.jsonl, or the run directory.
    """
    path = Path(file)
    path = path / "metrics.jsonl" if path.is_dir() else path
    by_step: dict[Any, dict[str, Any]] = {}
    first_step: dict[int, Any] = {}
    rows = _rows(path.read_text(encoding="utf-8")) if path.is_file() else []
    for row in rows:
        first_step.setdefault(row.get("attempt", 1), row.get("step") or 0)
    for row in rows:
        step, attempt = row.get("step") or 0, row.get("attempt", 1)
        if any(later > attempt and start <= step for later, start in first_step.items()):
            continue  # done again by a later attempt
        by_step.setdefault(step, {}).update(row)
    return [by_step[step] for step in sorted(by_step)]
