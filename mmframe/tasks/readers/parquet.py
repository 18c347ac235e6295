"""Parquet files in the layout of Hugging Face's datasets: pictures are {bytes, path}, or lists of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmframe.data.pictures import Cell
from mmframe.errors import UserError
from mmframe.tasks.readers.base import Files, Row, Rows, broken


@dataclass(frozen=True)
class ParquetCell(Cell):
    """A picture in a Parquet file.

    Attributes:
        file, column: where.
        group, row: number of the row group, and of the row in it.
        item: of a list of pictures, which one; None: the cell is the picture.
    """

    file: str
    column: str
    group: int
    row: int
    item: int | None = None

    def __str__(self) -> str:
        item = "" if self.item is None else f" {self.item + 1}"
        return f"{self.file} row {self.row + 1} of group {self.group}, {self.column}{item}"

    def read(self, count: int | None = None) -> bytes:
        """The bytes of the picture file; its row group is read, of which the last few are kept.

        Raises:
            UserError: the cell has no bytes.
        """
        value = _column(self.file, self.group, self.column)[self.row].as_py()
        value = value if self.item is None else value[self.item]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise UserError(f"{self}: the picture has no bytes, only a path; get the file again")
        return data[:count]


def read_parquet(files: Files, file: str | list[str]) -> Rows:
    """Rows of Parquet files. Pictures stay in them until they are asked for.

    Args:
        files: Finds them.
        file: Path, pattern or list of them.
    """
    found = files.find(file, (".parquet",))
    rows: list[Row] = []
    places: list[str] = []
    for path in found:
        made = _rows(path)
        rows += made
        places += [f"{path} row {number}" for number in range(1, len(made) + 1)]
    if not rows:
        raise broken(found[0], "it holds no rows")
    return Rows(rows, places, found)


def _rows(path: Path) -> list[Row]:
    from pyarrow import ArrowException

    try:
        parquet = _open(str(path))
        schema = parquet.schema_arrow
        pictures = [field.name for field in schema if _is_picture(field.type)]
        rows: list[Row] = []
        for group in range(parquet.num_row_groups):
            texts = [name for name in schema.names if name not in pictures]
            # of pictures only their path: what tells whether there is one, and how many
            paths = [f"{name}.{inside}path" for name in pictures for inside in ("", "list.element.", "list.item.")]
            table = parquet.read_row_group(group, columns=[*texts, *paths])
            counts = {name: _counts(str(path), group, name, table) for name in pictures}
            for number, row in enumerate(table.select(texts).to_pylist()):
                for name in pictures:
                    row[name] = _cells(str(path), name, group, number, counts[name][number])
                rows.append({"file": path.stem, **row})
        return rows
    except (ArrowException, OSError) as error:
        raise broken(path, f"it is no whole Parquet file ({error})") from error


def _counts(file: str, group: int, name: str, table: Any) -> list[int | None]:
    """Of each row: None no picture, -1 one, else the length of its list."""
    column = table.column(name) if name in table.column_names else _column(file, group, name)
    return [None if value is None else len(value) if isinstance(value, list) else -1 for value in column.to_pylist()]


def _cells(file: str, name: str, group: int, row: int, count: int | None) -> Any:
    if count is None:
        return None
    if count < 0:
        return ParquetCell(file, name, group, row)
    return [ParquetCell(file, name, group, row, item) for item in range(count)]


def _is_picture(kind: Any) -> bool:
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    if types.is_struct(kind):
        return any(kind.field(number).name == "bytes" for number in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


@lru_cache(maxsize=16)
def _open(file: str) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(file)


@lru_cache(maxsize=8)
def _column(file: str, group: int, name: str) -> Any:
    """A column of a row group; the last few are kept, as examples are asked for in order."""
    return _open(file).read_row_group(group, columns=[name], use_threads=False).column(name)
