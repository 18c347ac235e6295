"""Parquet files in the layout of Hugging Face's datasets: pictures are {bytes, path}, or lists of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
        number: which of the pictures of this column, from 0 on.
        row: number of the row, for messages.
    """

    file: str
    column: str
    number: int
    row: int

    def __str__(self) -> str:
        return f"{self.file} row {self.row}, {self.column}"

    def read(self, count: int | None = None) -> bytes:
        """The bytes of the picture file.

        Raises:
            UserError: the file is damaged, or the cell has a path alone.
        """
        kept = _unpacked(self.file, self.column)
        start = int(kept["end"][self.number - 1]) if self.number else 0
        end = int(kept["end"][self.number])
        if start == end:
            raise UserError(f"{self}: the picture has no bytes, only a path; get the file again")
        return kept["content"][start : end if count is None else min(end, start + count)].tobytes()


def read_parquet(files: Files, file: str | list[str]) -> Rows:
    """Rows of Parquet files. Pictures stay in them until the first is asked for.

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
    with _parquet(path) as parquet:
        schema = parquet.schema_arrow
        pictures = [field.name for field in schema if _is_picture(field.type)]
        texts = [name for name in schema.names if name not in pictures]
        rows = [{"file": path.stem, **row} for row in parquet.read(columns=texts).to_pylist()]
        for name in pictures:
            first = 0
            for number, (row, count) in enumerate(zip(rows, _counts(parquet, name), strict=True), 1):
                cells = [ParquetCell(str(path), name, first + n, number) for n in range(abs(count or 0))]
                row[name] = None if count is None else cells[0] if count < 0 else cells
                first += len(cells)
        return rows


def _counts(parquet: Any, name: str) -> list[int | None]:
    """Pictures of each row: None is none, -1 is one that is no list, else the length of the list.

    Of pictures only the path is read, a small column of its own.
    """
    paths = [f"{name}.{inside}path" for inside in ("", "list.element.", "list.item.")]
    table = parquet.read(columns=paths)
    if name not in table.column_names:  # plain bytes
        table = parquet.read(columns=[name])
    return [
        None if value is None else len(value) if isinstance(value, list) else -1 for value in table[name].to_pylist()
    ]


def _is_picture(kind: Any) -> bool:
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    if types.is_struct(kind):
        return any(kind.field(number).name == "bytes" for number in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


@lru_cache(maxsize=64)
def _unpacked(file: str, column: str) -> Any:
    """All pictures of a column, in the cache folder: "content", one after the other, and "end" of each, bytes.

    A picture cannot be read out of a Parquet file without its row group, of a hundred others; so they are copied once.
    """
    from mmframe.data.index import Arrays, cached_index

    def build() -> Iterator[Arrays]:
        import numpy as np

        yield {"content": np.zeros(0, np.uint8), "end": np.zeros(0, np.int64)}
        total = 0
        with _parquet(Path(file)) as parquet:
            for group in range(parquet.num_row_groups):
                for value in parquet.read_row_group(group, columns=[column]).column(column):
                    for data in _contents(value.as_py()):
                        total += len(data)
                        yield {"content": np.frombuffer(data, np.uint8), "end": np.array([total], np.int64)}

    return cached_index(file, f"pictures of {column} 1", build)


def _contents(value: Any) -> Iterator[bytes]:
    for each in value if isinstance(value, list) else [] if value is None else [value]:
        yield (each.get("bytes") if isinstance(each, dict) else each) or b""


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as parquet:
            yield parquet
    except (ArrowException, OSError) as error:
        raise broken(path, f"it is no whole Parquet file ({error})") from error
