"""load_task: a task's YAML and its files, read and checked."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmframe.data.files import content_digest
from mmframe.errors import UserError
from mmframe.tasks.hub import folder_of
from mmframe.tasks.readers import Files
from mmframe.tasks.row_task import RowTask
from mmframe.tasks.rows import rows_of
from mmframe.tasks.spec import read_spec


def load_task(name_or_path: str, data: Path | None = None, **overrides: Any) -> RowTask:
    """Reads a task.

    Args:
        name_or_path: A shipped task (`mmframe.tasks.task_names`), or a YAML file like those in recipes/tasks.
        data: The folder with the official files, in the layout that the task's YAML says; None: tasks of the offline
            corpus need none, and tasks with a hub id are downloaded.
        overrides: Keys of the YAML that are to be something else: ``max_tiles=6``, ``decoding={"max_new_tokens": 5}``.

    Raises:
        UserError: no such task, a wrong key, a missing or broken file; one line with what to do.
    """
    spec = read_spec(name_or_path, overrides)
    try:
        files = Files(folder_of(spec, data), _hint(spec.data))
        rows = rows_of(spec.data, files)
        shots = rows_of(spec.shots["data"], files) if spec.shots else None
    except UserError as error:
        raise UserError(f"task {spec.name}: {error}") from error
    used = [*rows.files, *(shots.files if shots else ())]
    task = RowTask(spec, rows, files, shots, digest(spec.prompt_facts()), content_digest(used))
    _check(task)
    return task


def digest(facts: Mapping[str, Any]) -> str:
    """Short hash of plain data; the order of keys counts only where it is that of options."""
    return hashlib.sha256(json.dumps(facts, ensure_ascii=False).encode()).hexdigest()[:16]


def _hint(data: Mapping[str, Any]) -> str:
    return f"; {' '.join(str(data['get']).split())}" if data.get("get") else ""


def _check(task: RowTask) -> None:
    """The first example can be built; ids are unique; circular questions have all their rotations."""
    first = task[0]
    try:
        twice = [each for each, count in Counter(map(task.id_of, range(len(task)))).items() if count > 1]
    except UserError as error:
        raise UserError(f"task {task.name}: {error}{task.files.hint}") from error
    if twice:
        raise UserError(
            f"task {task.name}: {len(twice)} ids stand twice, {twice[0]!r} the first; {task.rows.files[0]} is not the "
            f"official file{task.files.hint}"
        )
    if "group" in first.reference and "options" in first.reference:
        _check_rotations(task)


def _check_rotations(task: RowTask) -> None:
    """Official files hold each question once under every rotation; without them a score would be another one."""
    there: Counter[str] = Counter()
    wanted: dict[str, int] = {}
    for index in range(len(task)):
        reference = task.reference_of(index)
        there[str(reference["group"])] += 1
        wanted[str(reference["group"])] = len(reference["options"])
    incomplete = [group for group, count in there.items() if count != wanted[group]]
    if incomplete:
        group = incomplete[0]
        raise UserError(
            f"task {task.name}: {task.rows.files[0]}: question {group} is there {there[group]} times and has "
            f"{wanted[group]} options; circular evaluation needs every rotation ({len(incomplete)} of {len(there)} "
            f"questions lack some){task.files.hint}"
        )
