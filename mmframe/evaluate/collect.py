"""Results on the disk, and which of them are one model's row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmframe.cli.run_dir import few
from mmframe.errors import UserError
from mmframe.evaluate.record import RESULT, Result

_SET_ASIDE = re.compile(r"\.old-\d+$")  # what `mmframe evaluate --force` keeps of an earlier result

CONDITIONS = (
    *("metric", "headline", "prompt_digest", "data_fingerprint", "decoding", "max_tiles", "matcher", "limit"),
    *("judge", "code", "dtype"),
)
"""What must be equal for two scores of a task to be one measurement. Batch size, ranks and device change no digit."""


@dataclass
class ModelRow:
    """Results of one model that stand in one row.

    Attributes:
        name: of the model, made unique.
        weights: their digest.
        results: by task; `folders`: where each lies.
        notes: what a reader has to know of the row.
    """

    name: str
    weights: str
    results: dict[str, Result] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def conditions(result: Result) -> dict[str, Any]:
    """Values of CONDITIONS, in a form in which equal ones compare equal."""
    judge = None
    if result.judge:
        judge = {key: result.judge.get(key) for key in ("model", "prompt_digest")}  # whichever machine it ran on
    code = {key: result.code.get(key) for key in ("mmframe", "revision", "dirty")}
    metric = {key: result.metric.get(key) for key in ("name", "version", "spec")}
    own = {"judge": judge, "code": code, "metric": metric, "dtype": result.model.get("dtype")}
    return {key: own[key] if key in own else getattr(result, key) for key in CONDITIONS}


def differing(one: Result, other: Result) -> list[str]:
    """Names of the conditions in which two results of a task differ."""
    mine, theirs = conditions(one), conditions(other)
    return [key for key in CONDITIONS if mine[key] != theirs[key]]


def find_results(places: Sequence[Path]) -> tuple[list[tuple[Path, Result]], list[Path]]:
    """Result folders under some places, in the order of their paths; and folders with answers but without a result.

    What was set aside (`TASK.old-N`) is no result any more.

    Args:
        places: folders of results, of a model, or of one result.

    Raises:
        UserError: a place is not there or holds no result.
    """
    found: dict[Path, tuple[Path, Result]] = {}
    unfinished: list[Path] = []
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place}: is no folder of results; `mmframe evaluate` writes them")
        folders = sorted({file.parent for name in (RESULT, "answers*.jsonl") for file in place.rglob(name)})
        folders = [f for f in folders if not any(_SET_ASIDE.search(part) for part in f.relative_to(place).parts)]
        done = [folder for folder in folders if (folder / RESULT).is_file()]
        left = [folder for folder in folders if folder not in done]
        if not done:
            cut = f", only answers, of an evaluation that has not finished: {few([str(f) for f in left])}"
            raise UserError(f"{place}: holds no {RESULT}{cut if left else ''}; `mmframe evaluate` writes it")
        found |= {folder.resolve(): (folder, Result.read(folder)) for folder in done}
        unfinished += left
    return list(found.values()), unfinished


def model_rows(found: Iterable[tuple[Path, Result]]) -> list[ModelRow]:
    """One row for each model: its folder, joined with other folders of the same weights.

    Two results of a task that were not measured alike are never in one row: the second folder keeps a row of its own,
    with a note that says in what they differ.
    """
    by_folder: dict[tuple[Path, str], ModelRow] = {}
    for folder, result in found:
        weights = str(result.model.get("weights", ""))
        name = str(result.model.get("name") or folder.parent.name)
        row = by_folder.setdefault((folder.parent, weights), ModelRow(name, weights))
        if result.task in row.results:  # a copy beside it: compared below, never put over the first
            row = by_folder[folder, weights] = ModelRow(name, weights)
        row.results[result.task], row.folders[result.task] = result, folder
    rows: list[ModelRow] = []
    for row in by_folder.values():
        notes = []
        for other in [other for other in rows if row.weights and other.weights == row.weights]:
            clashes = _clashes(other, row)
            if not clashes:
                other.results, other.folders = row.results | other.results, row.folders | other.folders
                break
            notes.append(f"same weights as {other.name}, but not one row with it: {'; '.join(clashes)}")
        else:
            row.name = _unique(row.name, rows)
            row.notes += notes
            rows.append(row)
    for row in rows:
        row.notes += _mixtures(row)
    return rows


def _clashes(one: ModelRow, other: ModelRow) -> list[str]:
    """Tasks of both that were not measured alike, and in what they differ."""
    found = []
    for task in sorted(one.results.keys() & other.results.keys()):
        first, second = one.results[task], other.results[task]
        keys = differing(first, second)
        if keys:
            found.append(f"{task} was measured with another {', '.join(keys)}")
        elif repr(first.figures) != repr(second.figures):  # as text, so that NaN is NaN
            found.append(f"{task} was measured alike and gave {first.score:g} and {second.score:g}")
    return found


def _unique(name: str, rows: Sequence[ModelRow]) -> str:
    taken, number, made = {row.name for row in rows}, 2, name
    while made in taken:
        made, number = f"{name} ({number})", number + 1
    return made


def _mixtures(row: ModelRow) -> list[str]:
    """Conditions of the whole row in which its tasks differ."""
    notes = []
    for what, value in (("code revisions", lambda r: r.code.get("revision")), ("dtypes", lambda r: r.model["dtype"])):
        by_value: dict[str, list[str]] = {}
        for task, result in row.results.items():
            by_value.setdefault(str(value(result)), []).append(task)
        if len(by_value) > 1:
            told = "; ".join(f"{key[:12]}: {few(sorted(tasks))}" for key, tasks in by_value.items())
            notes.append(f"tasks were measured with different {what} ({told})")
    return notes
