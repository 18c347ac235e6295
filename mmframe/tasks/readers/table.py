"""TSV and CSV files, also with pictures in base64: the layout of MMBench, CCBench and VLMEvalKit."""

from __future__ import annotations

import base64
import binascii
import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmframe.data.pictures import Cell, read_range
from mmframe.errors import UserError
from mmframe.tasks.fields import as_list
from mmframe.tasks.readers.base import Files, Row, Rows, broken

_LONGEST_INDEX = 64
"""A cell of a picture column that is not longer names the row that has the picture, as in VLMEvalKit's reader."""


_LINE_ENDS = re.compile(r"(?<=\n)")  # not str.splitlines, which knows more ends of lines than the csv module


@dataclass(frozen=True)
class Base64Cell(Cell):
    """A picture in base64 in a cell of a table.

    Attributes:
        file: the table.
        offset, size: of its row, bytes.
        column: number of the column.
        row: number of the row, for messages.
        item: of a cell with a list of pictures, which one; None: the cell is the picture.
    """

    file: str
    offset: int
    size: int
    column: int
    row: int
    item: int | None = None

    def __str__(self) -> str:
        return f"{self.file} row {self.row}" + ("" if self.item is None else f" picture {self.item + 1}")

    def read(self, count: int | None = None) -> bytes:
        """The bytes of the picture file.

        Raises:
            UserError: it is not base64.
        """
        text = read_range(self.file, self.offset, self.size).decode("utf-8-sig")
        cell = next(_reader(_LINE_ENDS.split(text), self.file))[self.column]
        if self.item is not None:
            cell = as_list(cell)[self.item]
        try:
            return base64.b64decode(cell, validate=True)[:count]
        except (binascii.Error, ValueError) as error:
            raise UserError(f"{self}: the picture is not base64 ({error}); get the file again") from error


def read_table(
    files: Files, file: str | list[str], columns: list[str] | None = None, pictures: list[str] | None = None
) -> Rows:
    """Rows of .tsv and .csv files with quotes as pandas writes them; all values are texts.

    Args:
        files: Finds them.
        file: Path, pattern or list of them.
        columns: Names of the columns, of files whose first row is not their header.
        pictures: Columns with base64: a picture, a list of them, or the `index` of the row that has it.
    """
    found = files.find(file, (".csv", ".tsv"))
    all_rows: list[Row] = []
    places: list[str] = []
    for path in found:
        rows = list(_rows(path, columns))
        if not rows:
            raise broken(path, "it holds no rows")
        header = list(rows[0][1])
        by_index = {row.get("index"): row for _, row in rows}
        for name in pictures or ():
            if name not in header:
                raise broken(path, f"there is no column {name!r}, its columns are {', '.join(header)}")
            for place, row in rows:
                row[name] = _pictures(row[name], path, place, header.index(name))
            for place, row in rows:
                if isinstance(row[name], str):
                    row[name] = _of_row(by_index, row[name], name, f"{path} row {place[0]}")
        all_rows += [{"file": path.stem, **row} for _, row in rows]
        places += [f"{path} row {number}" for (number, _, _), _ in rows]
    return Rows(all_rows, places, found)


Place = tuple[int, int, int]
"""Number of a row from 1 on, its offset and its size in bytes."""


def _rows(path: Path, columns: list[str] | None) -> Iterator[tuple[Place, Row]]:
    csv.field_size_limit(1 << 30)  # pictures are long cells
    place = start = 0

    def lines() -> Iterator[str]:
        nonlocal place
        with path.open("rb") as stream:
            for line in stream:
                place += len(line)
                yield line.decode("utf-8-sig" if place == len(line) else "utf-8")

    header, number = columns, 0
    try:
        for cells in _reader(lines(), str(path)):
            offset, size, start = start, place - start, place
            if not cells:
                continue
            if header is None:
                header = cells
                continue
            number += 1
            if len(cells) != len(header):
                raise broken(path, f"row {number} has {len(cells)} cells, there are {len(header)} columns")
            yield (number, offset, size), dict(zip(header, cells, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise broken(path, f"after row {number} it cannot be read: {error}") from error


def _reader(lines: Iterable[str], file: str) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter="\t" if file.endswith(".tsv") else ",")


def _pictures(cell: str, path: Path, place: Place, column: int) -> Any:
    """The pictures of a cell, not read; a short cell as it is."""
    number, offset, size = place
    if len(cell) <= _LONGEST_INDEX:
        return cell.strip()
    if cell.startswith("["):
        return [Base64Cell(str(path), offset, size, column, number, n) for n in range(len(as_list(cell)))]
    return Base64Cell(str(path), offset, size, column, number)


def _of_row(by_index: dict[Any, Row], index: str, column: str, where: str) -> Any:
    if not index:
        return None
    other = by_index.get(index)
    if other is None or not isinstance(other[column], (Base64Cell, list)):
        raise UserError(f"{where}: its {column} {index!r} names no row with a picture; get the file again")
    return other[column]
