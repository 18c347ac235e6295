"""Published scores and the columns they stand in: published.yaml, read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import yaml

from mmframe.errors import UserError, suggest
from mmframe.evaluate.record import Result

FILE = Path(__file__).with_name("published.yaml")
_SPLITS = {"train", "val", "validation", "dev", "test", "testdev", "testmini"}


@dataclass(frozen=True)
class Column:
    """A benchmark of a table.

    Attributes:
        name: as the paper heads it.
        tasks: names of tasks that belong here, without their split.
        split: of the published figures; None where the benchmark has only one.
        metric: name of the metric; None where more than one fits.
        judge: whether the published figures were judged by an LLM.
        scale: divides a figure before it is averaged.
    """

    name: str
    tasks: tuple[str, ...]
    split: str | None = None
    metric: str | None = None
    judge: bool = False
    scale: float = 1

    def takes(self, result: Result) -> bool:
        """Whether a result is of this benchmark, in whatever split, and in its unit."""
        names = {_letters(name) for name in self.tasks}
        return benchmark(result.task, result.split) in names and self.metric in (None, result.metric["name"])


@dataclass(frozen=True)
class Published:
    """A row of others.

    Attributes:
        model: its name.
        source: where its figures were read, a line; `grade`: ``official`` or ``second-hand``.
        scores: figure of a column, as printed.
        reproduced: columns that the source measured itself, for a model of others.
        average: as printed; None where none was, or one over other columns.
    """

    model: str
    source: str
    grade: str
    scores: Mapping[str, float]
    reproduced: frozenset[str] = frozenset()
    average: float | None = None


@dataclass(frozen=True)
class TableSpec:
    """One table of the paper.

    Attributes:
        name: ``general``, ``vqa``...
        title: its heading; `about`: a line under it.
        columns: by name, in order.
        rows: the published ones, in order.
        average: whether it has a last column with the mean.
    """

    name: str
    title: str
    columns: Mapping[str, Column]
    rows: tuple[Published, ...] = ()
    average: bool = True
    about: str = field(default="")


@lru_cache(maxsize=1)
def tables() -> dict[str, TableSpec]:
    """All tables, by name."""
    data = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {name: _table(name, table, data["sources"]) for name, table in data["tables"].items()}


def _table(name: str, data: Mapping, sources: Mapping) -> TableSpec:
    columns = {key: Column(key, tuple(c["tasks"]), **{k: c[k] for k in c if k != "tasks"}) for key, c in
               data["columns"].items()}  # fmt: skip
    rows = []
    for row in data["rows"]:
        source = sources[row["source"]]
        unknown = (set(row["scores"]) | set(row.get("reproduced", ()))) - set(columns)
        assert not unknown, f"{FILE.name}: {row['model']}: no column {unknown}"
        rows.append(
            Published(
                row["model"],
                source["about"],
                source["grade"],
                row["scores"],
                frozenset(row.get("reproduced", ())),
                row.get("average"),
            )
        )
    return TableSpec(name, data["title"], columns, tuple(rows), data["average"], data.get("about", ""))


def benchmark(task: str, split: str) -> str:
    """Letters and digits of a task's name without its split: ``DocVQA_val`` and ``docvqa`` are both ``docvqa``."""
    parts = [part for part in re.split(r"[^a-z0-9]+", task.lower()) if part]
    kept = [part for part in parts if part not in _SPLITS and part != split.lower()]
    return "".join(kept or parts)


def chosen(names: Iterable[str]) -> list[str]:
    """Names of published models, in the given order.

    Raises:
        UserError: one is not among the published rows.
    """
    known = list(dict.fromkeys(row.model for table in tables().values() for row in table.rows))
    by_lower = {name.lower(): name for name in known}
    found = []
    for name in names:
        if name.lower() not in by_lower:
            raise UserError(f"no published row is called {name!r}; {suggest(name, known)}")
        found.append(by_lower[name.lower()])
    return found


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())
