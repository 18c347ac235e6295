"""Parquet files with the pictures in them, as Hugging Face's datasets are stored."""

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmframe.data.files import is_url, reading, short_name
from mmframe.data.index import Built
from mmframe.data.indexed_source import IndexedSource
from mmframe.data.pictures import Embedded, Picture
from mmframe.data.records import Record, parse_record
from mmframe.errors import BadRecord, UserError, suggest
from mmframe.processing.row import PLACEHOLDER
from mmframe.registry import register

_IMAGE = ("image", "images")
_TEXT = ("conversations", "texts", "questions", "caption", "text")
_KEYS = {"role": "from", "content": "value"}
_MOST_OPEN = 16
_LARGE_GROUP = 64 << 20  # bytes


@register("source")
class ParquetImages(IndexedSource):
    """Parquet files with embedded pictures, in the layout of Hugging Face's datasets.

    A picture is {"bytes", "path"} or the bytes alone; a row has one, or a list of them. What is said about them is a
    text (a caption), or a list of {"from", "value"}, {"role", "content"} or {"user", "assistant"}: a conversation.
    Rows without pictures are text. A record is read with its whole row group, of which the last few are kept: files
    with row groups of about 100 rows are made for this.

    Args:
        shards: The files: paths, URLs that fsspec knows, patterns like `train-*.parquet`, or a folder.
        image: Column of the pictures; null: `image` or `images`, if there is one.
        text: Column of the captions, texts or conversations; null: the first there is of conversations, texts,
            questions, caption, text.
        cache_mb: Row groups are kept in memory up to this size, for each process; at least one.
    """

    suffixes = (".parquet",)
    guessed_by = (".parquet",)
    row_array = "group"
    toy_args = {"shards": "train.parquet"}

    def __init__(
        self,
        shards: str | list[str],
        image: str | None = None,
        text: str | None = None,
        cache_mb: int = 256,
        **mix: Any,
    ) -> None:
        super().__init__(shards, **mix)
        self.image, self.text, self.cache_mb = image, text, cache_mb
        self._columns: tuple[str | None, str] = (image, "")
        self._forget()

    def _forget(self) -> None:
        """What a process keeps for itself."""
        self._files: OrderedDict[str, Any] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict(), "_groups": OrderedDict()}

    def index_kind(self) -> str:
        return "parquet rows 1"

    def index_file(self, file: str) -> Built:
        """For each row its row group, "group"; for each row group its first row, "first"."""
        with _errors(file):
            about = _parquet(file).metadata
            sizes = [about.row_group(number).num_rows for number in range(about.num_row_groups)]
        return {
            "group": np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
            "first": np.cumsum([0, *sizes], dtype=np.int64)[:-1],
        }

    def open(self) -> None:
        if self._rows is not None:
            return
        super().open()
        file, _, _ = self.rows.find(0)
        with _errors(file):
            parquet = _parquet(file)
            names, group = parquet.schema_arrow.names, parquet.metadata.row_group(0)
        self._columns = (self._column(self.image, _IMAGE, names), self._column(self.text, _TEXT, names) or "")
        if not self._columns[1]:
            raise UserError(f"data: {file} has no text column; its columns are {', '.join(names)}; set `text`")
        if group.total_byte_size > _LARGE_GROUP:
            print(
                f"data: {file} has row groups of {group.num_rows:,} rows, {group.total_byte_size / 1e6:,.0f} MB, and a "
                "record is read with its group; written anew with row_group_size=100 it is read faster"
            )

    @staticmethod
    def _column(wanted: str | None, known: tuple[str, ...], there: list[str]) -> str | None:
        if wanted is not None and wanted not in there:
            raise UserError(f"ParquetImages: there is no column {wanted!r}; {suggest(wanted, there)}")
        return wanted if wanted is not None else next((name for name in known if name in there), None)

    def record(self, index: int) -> Record:
        file, arrays, row = self.rows.find(index)
        group = int(arrays["group"][row])
        table, place, where = self._group(file, group), row - int(arrays["first"][group]), f"{file} row {row + 1}"
        image, text = (
            table.column(name)[place].as_py() if name in table.column_names else None for name in self._columns
        )
        images = image if isinstance(image, list) else [] if image is None else [image]
        pictures = tuple(_picture(one, file, f"{where} picture {n}") for n, one in enumerate(images, 1))
        if self._columns[0] is not None and not images and isinstance(text, str):
            raise BadRecord("picture missing", f"data: {where} has no picture")
        return parse_record(_said(self._columns[1], text, len(pictures)), where, short_name(file), row + 1, pictures)

    def _group(self, file: str, number: int) -> Any:
        """A row group, decoded; the last few are kept."""
        if self._process != os.getpid():  # a forked loader process
            self._forget()
        table = self._groups.pop((file, number), None)
        if table is None:
            with _errors(file):
                parquet = self._files.pop(file, None) or _parquet(file)
                columns = [name for name in self._columns if name]
                table = parquet.read_row_group(number, columns=columns, use_threads=False)
            self._files[file] = parquet
            if len(self._files) > _MOST_OPEN:
                self._files.popitem(last=False)[1].close(force=True)
        self._groups[file, number] = table
        while len(self._groups) > 1 and sum(kept.nbytes for kept in self._groups.values()) > self.cache_mb << 20:
            self._groups.popitem(last=False)
        return table


def _parquet(file: str) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("ParquetImages needs pyarrow; run: pip install pyarrow") from error
    if not is_url(file):
        return parquet.ParquetFile(file)
    import fsspec

    return parquet.ParquetFile(fsspec.open(file, "rb").open())  # type: ignore[union-attr]


@contextmanager
def _errors(file: str) -> Iterator[None]:
    with reading(file):
        try:
            yield
        except ValueError as error:  # pyarrow's error for what is no Parquet is one
            raise UserError(f"data: {file} is no Parquet file, or is damaged or cut off: {error}") from error


def _picture(value: Any, file: str, name: str) -> Picture:
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(data, bytes):
        return Embedded(name, data)
    if isinstance(path, str) and not is_url(file):
        return Path(file).parent / path
    raise BadRecord("picture missing", f"data: {name} has neither bytes nor a path")


def _said(column: str, value: Any, pictures: int) -> dict[str, Any]:
    """The text of a row in the form that `parse_record` takes."""
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        return {column if column in _TEXT else "conversations": value}
    if all({"user", "assistant"} <= turn.keys() for turn in value):  # the pictures stand in front of the first question
        said = [(who, turn[key]) for turn in value for who, key in (("human", "user"), ("gpt", "assistant"))]
        turns = [{"from": who, "value": text} for who, text in said]
        if pictures > 1 and turns and isinstance(turns[0]["value"], str):
            turns[0]["value"] = f"{PLACEHOLDER}\n" * pictures + turns[0]["value"]
        return {"conversations": turns}
    return {"conversations": [{_KEYS.get(key, key): text for key, text in turn.items()} for turn in value]}
