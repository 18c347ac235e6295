"""The paper's tables with our rows among the published ones: cells, their footnotes, averages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmframe.evaluate.collect import ModelRow, differing
from mmframe.evaluate.published import Column, Published, TableSpec, tables
from mmframe.evaluate.record import Result

FEWEST_AXES = 3
"""Of a radar plot."""


@dataclass(frozen=True)
class Cell:
    """A figure of a table.

    Attributes:
        score: as measured or printed, on the benchmark's own scale.
        notes: in what it is not what the published figures are.
        averaged: whether it may enter an average beside published ones.
        result: ours; None in a published row.
    """

    score: float
    notes: tuple[str, ...] = ()
    averaged: bool = True
    result: Result | None = None


@dataclass
class Row:
    """A model in a table.

    Attributes:
        name: of the model. `ours`: whether it was measured here.
        source: of a published row, with its grade.
        cells: by column; a column that is missing has none.
        notes: on the whole row.
    """

    name: str
    ours: bool
    source: str = ""
    cells: dict[str, Cell] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Table:
    """One of the paper's tables, filled."""

    spec: TableSpec
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def average(self, row: Row) -> tuple[float | None, str]:
        """Mean over all columns, each brought to 100 at most, and "" ; or None and why there is none."""
        if not self.spec.average:
            return None, ""
        missing = [name for name in self.spec.columns if name not in row.cells]
        if missing:
            return None, f"no average: {len(missing)} of {len(self.spec.columns)} missing"
        barred = [name for name, cell in row.cells.items() if not cell.averaged]
        if barred:
            return None, f"no average: {', '.join(barred)} not measured as the published figures were"
        return mean_of(self.spec, {name: cell.score for name, cell in row.cells.items()}), ""


@dataclass
class Other:
    """A task outside of the tables: our models' results by their names."""

    task: str
    results: dict[str, Result]
    notes: list[str] = field(default_factory=list)


@dataclass
class Report:
    """All tables of a report.

    Attributes:
        tables: those in which a model of ours has a cell; `empty`: titles of the paper's two that have none.
        others: tasks of ours in no table.
        left_out: what does not stand in them, and why.
        rows: our models.
    """

    tables: list[Table]
    empty: list[str]
    others: list[Other]
    left_out: list[str]
    rows: list[ModelRow]

    def radar_axes(self) -> dict[str, list[Row]]:
        """The averaged tables' columns in which we have a figure, with the rows of their table."""
        return {
            name: table.rows
            for table in self.tables
            if table.spec.average
            for name in table.spec.columns
            if any(row.ours and name in row.cells for row in table.rows)
        }


def mean_of(spec: TableSpec, scores: dict[str, float]) -> float:
    """Mean of a full row: MME's sum is of 2800 and OCRBench's count of 1000, so they are divided by 28 and 10."""
    return math.fsum(scores[name] / column.scale for name, column in spec.columns.items()) / len(spec.columns)


def build_report(rows: Sequence[ModelRow], limited: bool = False) -> Report:
    """Puts results into columns by the names of their tasks.

    Args:
        rows: Our models.
        limited: Whether results on a part of the data stand in the tables too, marked.
    """
    left_out: list[str] = []
    free: dict[int, dict[str, Result]] = {}
    for place, row in enumerate(rows):
        free[place] = {}
        for task, result in row.results.items():
            if result.limit is not None and not limited:
                left_out.append(f"{row.name}, {task}: {result.n:,} examples only (--limit {result.limit})")
            elif not math.isfinite(result.score):
                left_out.append(f"{row.name}, {task}: {result.headline} is {result.score}")
            else:
                free[place][task] = result
    filled: list[Table] = []
    empty: list[str] = []
    for spec in tables().values():
        mine = [_our_row(spec, row, free[place]) for place, row in enumerate(rows)]
        mine = [row for row in mine if row.cells]
        if mine:
            table = Table(spec, [*map(_published_row, spec.rows), *mine])
            table.notes = [note for name in spec.columns for note in _unequal(name, mine)]
            filled.append(table)
        elif spec.average:
            empty.append(spec.title)
    others: dict[str, Other] = {}
    for place, row in enumerate(rows):
        for task, result in free[place].items():
            others.setdefault(task, Other(task, {})).results[row.name] = result
    for other in others.values():
        other.notes = _compared(other.task, list(other.results.items()))
    return Report(filled, empty, [others[task] for task in sorted(others)], left_out, list(rows))


def _published_row(row: Published) -> Row:
    own = "measured by the row's source, not by the model's authors"
    cells = {name: Cell(score, (own,) if name in row.reproduced else ()) for name, score in row.scores.items()}
    return Row(row.model, False, f"{row.source} ({row.grade})", cells)


def _our_row(spec: TableSpec, row: ModelRow, free: dict[str, Result]) -> Row:
    """Takes what belongs into the table out of `free`. Of two splits the published one is taken, the other stays."""
    made = Row(row.name, True, "measured here", notes=row.notes)
    for name, column in spec.columns.items():
        fitting = [result for result in free.values() if column.takes(result)]
        if fitting:
            best = min(fitting, key=lambda result: (len(_departures(column, result)), result.task))
            made.cells[name] = _cell(column, free.pop(best.task))
    return made


def _cell(column: Column, result: Result) -> Cell:
    notes = _departures(column, result)
    barred = result.limit is not None or (column.judge and result.matcher == "rules")
    if result.errors:
        notes.append(f"{result.errors:,} of {result.n:,} examples could not be asked and count as wrong")
    return Cell(result.score, tuple(notes), not barred, result)


def _departures(column: Column, result: Result) -> list[str]:
    """In what a result is not what the published figures of its column are."""
    notes = []
    if column.split is not None and result.split != column.split:
        notes.append(f"split {result.split}; published: {column.split}")
    if result.limit is not None:
        notes.append(f"on {result.n:,} examples only (--limit {result.limit})")
    if column.judge and result.matcher == "rules":
        notes.append(f"matcher=rules, {result.unmatched:,} of {result.n:,} answers unmatched; published: LLM judge")
    elif result.matcher == "judge":
        judge = result.judge or {}
        failed = f", {judge['failed']:,} failed" if judge.get("failed") else ""
        told = "another judge" if column.judge else "no judge that we know of"
        notes.append(f"judged by {judge.get('model', '?')}{failed}; published: {told}")
    return notes


def _unequal(column: str, rows: Sequence[Row]) -> list[str]:
    """Conditions in which our rows differ in a column."""
    found = [(row.name, row.cells[column].result) for row in rows if column in row.cells]
    return _compared(column, [(name, result) for name, result in found if result is not None])


def _compared(what: str, results: Sequence[tuple[str, Result]]) -> list[str]:
    """A line for each row whose result of a task was not measured as the first one's."""
    notes = []
    for name, result in results[1:]:
        first, reference = results[0]
        keys = differing(reference, result) if reference.task == result.task else ["task"]
        if keys:
            notes.append(f"{what}: {first} and {name} differ in {', '.join(keys)}: not the same measurement")
    return notes
