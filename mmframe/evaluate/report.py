"""A report as Markdown, as a tidy CSV and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmframe.evaluate.collect import ModelRow, conditions
from mmframe.evaluate.record import Result
from mmframe.evaluate.tables import Cell, Other, Report, Row, Table

COLUMNS = (
    *("table", "column", "model", "ours", "score", "normalised", "headline", "task", "split", "n", "unmatched"),
    *("errors", "limit", "matcher", "judge", "metric", "metric_version", "prompt_digest", "data_fingerprint"),
    *("weights", "dtype", "max_tiles", "revision", "source", "folder", "notes"),
)
"""Of report.csv: one figure a row."""


class Footnotes:
    """Numbers for texts; equal texts have one number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, notes: Iterable[str]) -> str:
        """e.g. " [1,3]"; "" for no notes."""
        for note in notes:
            if note not in self.texts:
                self.texts.append(note)
        numbers = sorted(self.texts.index(note) + 1 for note in set(notes))
        return f" [{','.join(map(str, numbers))}]" if numbers else ""

    def lines(self) -> list[str]:
        return [f"- [{number}] {text}" for number, text in enumerate(self.texts, 1)]


def markdown(report: Report) -> str:
    """The report as people read it."""
    lines = ["# Evaluation", ""]
    for table in report.tables:
        lines += [f"## {table.spec.title}", "", *_table(table), ""]
    if report.empty:
        lines += [f"No result of ours for: {', '.join(report.empty)}.", ""]
    if report.others:
        lines += ["## Other tasks", "", *_others(report.others, [row.name for row in report.rows]), ""]
    if report.left_out:
        lines += ["Left out of the tables:", "", *(f"- {text}" for text in report.left_out), ""]
    lines += ["## What was measured", "", *_measured(report.rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(table: Table) -> list[str]:
    notes = Footnotes()
    head = ["model", *table.spec.columns, *(["Avg"] if table.spec.average else []), "source"]
    sources: dict[str, str] = {"measured here": "ours"}
    for row in table.rows:
        sources.setdefault(row.source, f"S{len(sources)}")
    rows = [_line(table, row, notes, sources[row.source]) for row in table.rows]
    lines = aligned(head, rows)
    lines += ["", *([table.spec.about, ""] if table.spec.about else []), *notes.lines()]
    lines += [f"- {mark}: {source}" for source, mark in sources.items() if mark != "ours"]
    lines += [f"- {note}" for note in table.notes]
    scaled = [f"{name} / {column.scale:g}" for name, column in table.spec.columns.items() if column.scale != 1]
    if table.spec.average:
        how = f", with {', '.join(scaled)}" if scaled else ""
        lines += [f"- Avg: mean over all columns{how}; none of a part. *: of figures with notes"]
    return lines


def _line(table: Table, row: Row, notes: Footnotes, source: str) -> list[str]:
    cells = [f"**{row.name}**{notes.mark(row.notes)}" if row.ours else row.name]
    for name, column in table.spec.columns.items():
        cell = row.cells.get(name)
        cells.append("-" if cell is None else f"{_figure(cell.score, column.scale)}{notes.mark(cell.notes)}")
    if table.spec.average:
        value, why = table.average(row)
        inherited = any(cell.notes for cell in row.cells.values())
        marked = notes.mark([why] if row.ours and why else [])
        cells.append(f"-{marked}" if value is None else f"{value:.1f}{' *' if inherited else ''}")
    return [*cells, source]


def _others(others: Sequence[Other], models: Sequence[str]) -> list[str]:
    notes = Footnotes()
    rows = []
    for other in others:
        some = next(iter(other.results.values()))
        cells = []
        for model in models:
            result = other.results.get(model)
            cells.append("-" if result is None else f"{result.score:.2f}{notes.mark(_told(result))}")
        rows.append([other.task + notes.mark(other.notes), some.headline, f"{some.n:,}", *cells])
    return [*aligned(["task", "figure", "n", *models], rows), "", *notes.lines()]


def _told(result: Result) -> list[str]:
    notes = [f"on {result.n:,} examples only (--limit {result.limit})"] if result.limit is not None else []
    if result.errors:
        notes.append(f"{result.errors:,} of {result.n:,} examples could not be asked and count as wrong")
    if result.matcher == "judge":
        notes.append(f"judged by {(result.judge or {}).get('model', '?')}")
    return notes


def _measured(rows: Sequence[ModelRow]) -> list[str]:
    head = ["model", "task", "n", "unmatched", "errors", "metric", "matcher", "tiles", "prompt", "data", "weights",
            "dtype", "code"]  # fmt: skip
    lines = []
    for row in rows:
        for task, r in sorted(row.results.items()):
            judge = f"judge {r.judge.get('model', '?')}" if r.judge and r.matcher == "judge" else r.matcher
            metric = f"{r.metric['name']} {r.metric.get('version', '?')}"
            tiles = "model's" if r.max_tiles is None else str(r.max_tiles)
            made = [r.prompt_digest, r.data_fingerprint, str(r.model.get("weights", ""))]
            code = f"{r.code.get('mmframe', '?')} {str(r.code.get('revision') or '?')[:10]}"
            lines.append([row.name, task, f"{r.n:,}", f"{r.unmatched:,}", f"{r.errors:,}", metric, judge, tiles,
                          *(text[:10] for text in made), str(r.model.get("dtype", "?")), code])  # fmt: skip
    notes = [f"- {row.name}: {note}" for row in rows for note in row.notes]
    return [*aligned(head, lines), *(["", *notes] if notes else [])]


def csv_rows(report: Report) -> list[dict[str, Any]]:
    """One figure a row, with COLUMNS; published ones too."""
    made = []
    for table in report.tables:
        for row in table.rows:
            for name, column in table.spec.columns.items():
                cell = row.cells.get(name)
                if cell is not None:
                    facts = {"table": table.spec.name, "column": name, "normalised": cell.score / column.scale}
                    made.append(facts | _csv_row(row.name, cell, row.source, report))
            value, _ = table.average(row)
            if value is not None:
                facts = {"table": table.spec.name, "column": "Avg", "model": row.name, "ours": int(row.ours)}
                made.append(facts | {"score": value, "normalised": value, "source": row.source})
    for other in report.others:
        for model, result in other.results.items():
            cell = Cell(result.score, tuple(_told(result) + other.notes), result=result)
            made.append({"table": "other", "column": other.task} | _csv_row(model, cell, "measured here", report))
    return made


def _csv_row(model: str, cell: Cell, source: str, report: Report) -> dict[str, Any]:
    row: dict[str, Any] = {"model": model, "ours": int(cell.result is not None), "score": cell.score}
    row |= {"source": source, "notes": "; ".join(cell.notes)}
    if cell.result is None:
        return row
    r = cell.result
    folder = next(own.folders[r.task] for own in report.rows if own.name == model)
    row |= {key: getattr(r, key) for key in ("headline", "task", "split", "n", "unmatched", "errors", "limit")}
    row |= {key: getattr(r, key) for key in ("matcher", "max_tiles", "prompt_digest", "data_fingerprint")}
    row |= {"metric": r.metric["name"], "metric_version": r.metric.get("version"), "folder": folder.as_posix()}
    row |= {"judge": (r.judge or {}).get("model"), "weights": r.model.get("weights"), "dtype": r.model.get("dtype")}
    row |= {"revision": r.code.get("revision")}
    return {key: "" if value is None else value for key, value in row.items()}


def as_json(report: Report) -> str:
    """The report for programs: tables as they stand, and every result with its conditions."""
    data = {
        "format": 1,
        "tables": [_json_table(table) for table in report.tables],
        "others": [
            {"task": o.task, "scores": {m: _number(r.score) for m, r in o.results.items()}, "notes": o.notes}
            for o in report.others
        ],
        "left_out": report.left_out,
        "models": [
            {"name": row.name, "weights": row.weights, "notes": row.notes}
            | {"results": {task: _json_result(r, row.folders[task]) for task, r in sorted(row.results.items())}}
            for row in report.rows
        ],
    }
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _json_table(table: Table) -> dict[str, Any]:
    rows = []
    for row in table.rows:
        value, why = table.average(row)
        cells = {n: {"score": c.score, "notes": list(c.notes)} for n, c in row.cells.items()}
        rows.append({"model": row.name, "ours": row.ours, "source": row.source, "cells": cells, "average": value}
                    | {"no_average": why, "notes": row.notes})  # fmt: skip
    columns = {name: {"split": c.split, "scale": c.scale, "judge": c.judge} for name, c in table.spec.columns.items()}
    return {"name": table.spec.name, "title": table.spec.title, "columns": columns, "rows": rows, "notes": table.notes}


def _json_result(result: Result, folder: Path) -> dict[str, Any]:
    figures = {key: _number(value) for key, value in result.figures.items()}
    counts = {key: getattr(result, key) for key in ("n", "unmatched", "errors", "split")}
    return {"folder": folder.as_posix(), "figures": figures, **counts, **conditions(result)}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


def _figure(score: float, scale: float) -> str:
    return f"{score:.1f}" if scale == 1 else f"{score:.0f}"


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table that a terminal shows straight."""
    widths = [max(len(line[place]) for line in [head, *rows]) for place in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return [line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)]
