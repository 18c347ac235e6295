"""Results of a grid as two tidy tables: one value a row. Everything else is made of them. No torch."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmframe.ablate.grid import Grid
from mmframe.ablate.plan import Run
from mmframe.ablate.run_folder import RunFolder
from mmframe.cli.run_dir import RunDir, read_json, write_atomically
from mmframe.errors import UserError
from mmframe.metrics_file import read_metrics

RESULTS, CURVES = "results.csv", "curves.csv"
COLUMNS = ("grid", "axis", "variant", "baseline", "seed", "run", "step", "role", "metric", "better", "value", "note")
"""role: metric (a column of the table, in order), items (the standard error of a metric over the items that it was
measured on), fact (what the run took), state (done, or why not), grid."""
CURVE_COLUMNS = ("grid", "variant", "baseline", "seed", "stage", "step", "tokens", "metric", "value")
SUMMED = ("tokens", "samples", "flops", "seconds")
PEAKS = {"memory_gib": "memory/peak_rss_gib", "gpu_memory_gib": "memory/peak_cuda_gib"}
Row = dict[str, Any]


def collect(grid: Grid, runs: Sequence[Run], results: Path) -> tuple[list[Row], list[Row]]:
    """Rows of both tables, run by run in the order of the grid; what has not finished says so."""
    head = {"grid": grid.name, "role": "grid"}
    budget = f"{grid.budget.amount} {grid.budget.unit}" if grid.budget else "the recipe's own steps"
    rows: list[Row] = [
        {**head, "metric": "base", "note": " ".join(grid.base)},
        {**head, "metric": "budget", "note": budget},
    ]
    curves: list[Row] = []
    for run in runs:
        folder = RunFolder(results, run)
        who = {
            "grid": grid.name,
            "axis": run.variant.axis,
            "variant": run.variant.id,
            "baseline": int(run.variant.baseline),
            "seed": run.seed,
            "run": run.hash,
        }
        rows += [{**who, **row} for row in _rows(grid, folder)]
        curves += [{**{k: who[k] for k in CURVE_COLUMNS[:4]}, **row} for row in _curves(grid, folder)]
    return rows, curves


def _rows(grid: Grid, folder: RunFolder) -> Iterable[Row]:
    done = folder.finished(grid.evaluators)
    failed = read_json(folder.failure)
    note = "done" if done else f"failed: {failed['reason']}" if failed else "not finished"
    yield {"role": "state", "metric": "state", "value": int(done), "note": note}
    for name, count in folder.run.parameters.items():
        yield {"role": "fact", "metric": f"parameters_{name}", "value": count}
    if not done:
        return
    records = [read_json(stage.done) for stage in folder.stages.values()]
    steps = sum(record["steps"] for record in records)
    for metric in grid.metrics:
        better = "lower" if metric in grid.lower_is_better else "higher"
        value = _metric(grid, folder, metric)
        row = {"step": steps, "role": "metric", "metric": metric, "better": better}
        yield row | ({"note": "was not logged"} if value is None else {"value": value})
        if (error := _metric(grid, folder, f"{metric}_se")) is not None:
            yield {"step": steps, "role": "items", "metric": f"{metric}_se", "value": error}
    totals = [record.get("totals", {}) for record in records]
    yield {"role": "fact", "metric": "steps", "value": steps}
    for name in SUMMED:
        yield {"role": "fact", "metric": name, "value": sum(total.get(name, 0) for total in totals)}
    for name, key in PEAKS.items():
        if any(key in total for total in totals):
            yield {"role": "fact", "metric": name, "value": max(total.get(key, 0.0) for total in totals)}
    meta = read_json(folder.last.meta)
    yield {
        "role": "fact",
        "metric": "revision",
        "note": f"{meta.get('revision')}{' changed' if meta.get('dirty') else ''}",
    }
    yield {"role": "fact", "metric": "device", "note": str(meta.get("device", "unknown"))}


def _metric(grid: Grid, folder: RunFolder, metric: str) -> float | None:
    """Of an evaluator; else what the last stage logged last."""
    name, _, key = metric.partition(".")
    if name in grid.evaluators:
        return (folder.measured(grid.evaluators[name]) or {}).get(key)
    found = [row[metric] for row in read_metrics(folder.last.path) if metric in row]
    value = found[-1] if found else read_json(folder.last.done).get("metrics", {}).get(metric)
    return None if value is None or not math.isfinite(float(value)) else float(value)


def _curves(grid: Grid, folder: RunFolder) -> Iterable[Row]:
    """What was logged over tokens: losses, and those of the grid's metrics that are logged."""
    wanted = dict.fromkeys(["train/loss", "val/loss", *(m for m in grid.metrics if "/" in m)])
    before = 0.0
    for name, stage in folder.stages.items():
        rows = read_metrics(stage.path)
        for row in rows:
            tokens = before + _tokens_at(stage, rows, row["step"])
            for metric in wanted:
                if metric in row and math.isfinite(value := float(row[metric])):
                    yield {
                        "stage": name,
                        "step": row["step"],
                        "tokens": round(tokens),
                        "metric": metric,
                        "value": value,
                    }
        before += read_json(stage.done).get("totals", {}).get("tokens", 0)


def _tokens_at(stage: RunDir, rows: list[Row], step: int) -> float:
    """Tokens seen after a step (counted from 0): between two logged counts by the straight line."""
    points = [(-1.0, 0.0)] + [(row["step"], row["train/tokens"]) for row in rows if "train/tokens" in row]
    if stage.done.is_file():
        done = read_json(stage.done)
        points.append((done["steps"] - 1, done.get("totals", {}).get("tokens", points[-1][1])))
    for (left, low), (right, high) in zip(points, points[1:], strict=False):
        if left <= step <= right and right > left:
            return low + (high - low) * (step - left) / (right - left)
    return points[-1][1]


def write_csv(file: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Writes a table; numbers so that they are read back as they were."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, stream.getvalue())


def read_csv(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Reads a table back.

    Raises:
        UserError: it is not there, or has other columns.
    """
    if not file.is_file():
        raise UserError(f"{file}: is not there; `mmframe ablate GRID` writes it")
    with file.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != tuple(columns):
        raise UserError(f"{file}: is no table of `mmframe ablate`: expected the columns {', '.join(columns)}")
    return rows


def write_index(results: Path, grid: Grid, runs: Sequence[Run]) -> None:
    """index.json of the results folder: which folder of runs/ is what in which grid."""
    file = results / "index.json"
    index = read_json(file)
    for names in index.values():
        names[:] = [name for name in names if not name.startswith(f"{grid.name}: ")]
    for run in runs:
        index.setdefault(run.hash, []).append(f"{grid.name}: {run.id}")
    index = {key: sorted(names) for key, names in sorted(index.items()) if names}
    results.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(index, indent=1) + "\n")
