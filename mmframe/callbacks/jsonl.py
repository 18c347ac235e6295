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

from mmframe.metrics_file import read_metrics, rows_of

__all__ = ["JsonlLogger", "read_metrics"]


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
        return 1 + max((row.get("attempt", 1) for row in rows_of(lines.decode("utf-8", "replace"))), default=0)


def _plain(value: Any) -> Any:
    number = float(value.item() if hasattr(value, "item") else value)
    if not math.isfinite(number):
        return str(number)  # JSON has no NaN; float("nan") reads it back
    return int(number) if number.is_integer() and abs(number) < 1e15 and isinstance(value, int) else number
