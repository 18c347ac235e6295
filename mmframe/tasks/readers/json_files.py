"""JSON files: a list of rows, a dictionary of rows by their id, two files joined by an id; and JSONL files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmframe.errors import UserError
from mmframe.tasks.readers.base import Files, Row, Rows, at_path, broken


def read_json(
    files: Files,
    file: str | list[str],
    records: str = "",
    join: Mapping[str, str] | None = None,
    only: Mapping[str, str] | None = None,
) -> Rows:
    """Rows of JSON files.

    Args:
        files: Finds them.
        file: Path or paths. Several are read one after the other.
        records: Keys, with dots, to the list of rows, or to a dictionary of them: then the column `key` is added.
        join: {file, records, on, to, as}: other rows by an id. Each row gets a column `as`: the list of those whose
            `to` equals its `on`. `file` and `to` are by default the same.
        only: {file, records}: a list of keys; rows of a dictionary are these, in this order.
    """
    found = files.find(file)
    keys: list[str] | None = None
    if only is not None:
        (listed,) = files.find(only["file"])
        found_in = at_path(_load(listed), only["records"], listed)
        keys = [str(key) for key in found_in]
    rows: list[Row] = []
    places: list[str] = []
    for path in found:
        data = at_path(_load(path), records, path)
        if isinstance(data, Mapping):
            missing = [key for key in keys or () if key not in data]
            if missing:
                raise broken(path, f"{missing[0]!r} is in {only and only['file']} but not in it")
            chosen = list(data) if keys is None else keys
            data = [{"key": key, **_mapping(data[key], path, key)} for key in chosen]
        if not isinstance(data, list) or not data:
            raise broken(path, f"a list of rows is needed at {records or 'its top'!r}, there is {data!r:.40}")
        places += [f"{path} row {number}" for number in range(1, len(data) + 1)]
        rows += [{"file": path.stem, **_mapping(row, path, n)} for n, row in enumerate(data, 1)]
    used = found
    if join is not None:
        others = files.find(join.get("file", file))
        used = list(dict.fromkeys([*found, *others]))
        _join(rows, places, join, others)
    return Rows(rows, places, used)


def _join(rows: list[Row], places: list[str], join: Mapping[str, str], others: list[Path]) -> None:
    on = join["on"]
    to = join.get("to", on)
    by_id: dict[Any, list[Row]] = {}
    for path in others:
        for number, other in enumerate(at_path(_load(path), join["records"], path), 1):
            if to not in other:
                raise broken(path, f"row {number} has no {to!r}")
            by_id.setdefault(other[to], []).append(other)
    for row, place in zip(rows, places, strict=True):
        if row.get(on) not in by_id:
            raise UserError(f"{place}: {on} {row.get(on)!r} is not among the {to} of {others[0]}; get both files again")
        row[join["as"]] = by_id[row[on]]


def read_jsonl(files: Files, file: str | list[str]) -> Rows:
    """Rows of JSONL files, a JSON object in each line.

    Args:
        files: Finds them.
        file: Path, pattern or list of them.
    """
    found = files.find(file, (".jsonl",))
    rows: list[Row] = []
    places: list[str] = []
    for path in found:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise broken(path, f"line {number} is not JSON ({error})") from error
                rows.append({"file": path.stem, **_mapping(row, path, number)})
                places.append(f"{path} line {number}")
        if not rows:
            raise broken(path, "it holds no rows")
    return Rows(rows, places, found)


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, UnicodeDecodeError) as error:
        raise broken(path, f"it is not JSON ({error})") from error


def _mapping(row: Any, path: Path, place: Any) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise broken(path, f"row {place} is not an object but a {type(row).__name__}")
    return row
