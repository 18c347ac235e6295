"""Reads metrics.jsonl, which mmframe.callbacks.jsonl writes. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def rows_of(text: str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; what a kill cut off is left out."""
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
    rows = rows_of(path.read_text(encoding="utf-8")) if path.is_file() else []
    for row in rows:
        first_step.setdefault(row.get("attempt", 1), row.get("step") or 0)
    for row in rows:
        step, attempt = row.get("step") or 0, row.get("attempt", 1)
        if any(later > attempt and start < step for later, start in first_step.items()):
            continue  # done again by a later attempt; of its very first step only what it has logged anew
        by_step.setdefault(step, {}).update(row)
    return [by_step[step] for step in sorted(by_step)]
