"""What a benchmark's server scores: the answers to a split whose own are not public, in the file that it takes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmframe.cli.run_dir import write_atomically
from mmframe.evaluate.scoring import Row
from mmframe.tasks.task import Task


def write_submission(task: Task, places: Sequence[int], rows: Sequence[Row], folder: Path) -> Path | None:
    """Writes the file of a task that has one, if all of its examples were asked; else None.

    Args:
        task: The task.
        places: Of the examples that were asked.
        rows: Theirs, of answers.jsonl. What could not be asked is an empty answer.
        folder: Where answers.jsonl lies.
    """
    if task.submission is None or len(places) != len(task):
        return None
    by_place = sorted(zip(places, rows, strict=True), key=lambda each: each[0])
    made = [task.submitted(place, str(row.get("answer", ""))) for place, row in by_place]
    file = folder / task.submission
    write_atomically(file, (_json if file.suffix == ".json" else _tsv)(made))
    return file


def _json(rows: Sequence[dict[str, Any]]) -> str:
    return json.dumps(rows, ensure_ascii=False, indent=0) + "\n"


def _tsv(rows: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
