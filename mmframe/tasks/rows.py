"""The rows that a task asks: read, made of one another, and chosen, as its `data` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmframe.errors import UserError
from mmframe.tasks.fields import as_text, evaluate
from mmframe.tasks.readers import READERS, Files, Rows
from mmframe.tasks.readers.base import Row
from mmframe.tasks.spec import reader_of


def rows_of(data: Mapping[str, Any], files: Files) -> Rows:
    """Rows of a `data` section. In this order:

    - the reader's rows; `row` is their number, from 1 on
    - `each: COLUMN`: a row for each item of a list, with `item` and `number` from 0 on
    - `keep: {COLUMN: value or list of values}`: those rows alone; `present` is any value but an empty one
    - `every: N`: every Nth of them, the first one included
    - `choices: {of: TEMPLATE, count: N}`: options made of the rows themselves, see `_with_choices`

    Raises:
        UserError: a file is missing or broken, or no row is left.
    """
    name, arguments = reader_of(data)
    rows = READERS[name](files, **arguments)
    for number, row in enumerate(rows.rows, 1):
        row.setdefault("row", number)
    if data.get("each"):
        rows = _each(rows, str(data["each"]))
    rows = _kept(rows, data.get("keep") or {})
    if data.get("every"):
        rows = rows.pick(range(0, len(rows.rows), int(data["every"])))
    if not rows.rows:
        raise UserError(f"{rows.files[0]}: no row is left of those that `keep` asks for{files.hint}")
    return _with_choices(rows, **data["choices"]) if data.get("choices") else rows


def _each(rows: Rows, column: str) -> Rows:
    made: list[Row] = []
    places: list[str] = []
    for row, place in zip(rows.rows, rows.places, strict=True):
        items = row.get(column)
        if not isinstance(items, list):
            raise UserError(f"{place}: {column!r} is no list but {items!r:.60}")
        made += [{**row, "item": item, "number": number} for number, item in enumerate(items)]
        places += [f"{place} item {number}" for number in range(1, len(items) + 1)]
    return Rows(made, places, rows.files)


def _kept(rows: Rows, keep: Mapping[str, Any]) -> Rows:
    def allowed(row: Row, column: str, wanted: Any) -> bool:
        value = row.get(column)
        if wanted == "present":
            return value not in (None, "", [])
        return as_text(value) in [as_text(each) for each in (wanted if isinstance(wanted, list) else [wanted])]

    for column in keep:
        if not any(column in row for row in rows.rows):
            raise UserError(f"{rows.files[0]}: there is no column {column!r}, by which rows are kept")
    if not keep:
        return rows
    return rows.pick(n for n, row in enumerate(rows.rows) if all(allowed(row, *each) for each in keep.items()))


def _with_choices(rows: Rows, of: str, count: int) -> Rows:
    """Multiple choice out of texts: `choices` are a row's own value of the template and those of the rows after it
    (after the last comes the first), `right` is the place of its own, which goes round."""
    values = [as_text(evaluate(of, row)) for row in rows.rows]
    if len(values) < count:
        raise UserError(f"{rows.files[0]}: {len(values)} rows give no {count} choices")
    for number, row in enumerate(rows.rows):
        others = [values[(number + step) % len(values)] for step in range(1, count)]
        right = number % count
        row |= {"choices": [*others[:right], values[number], *others[right:]], "right": right}
    return rows
