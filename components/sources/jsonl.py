"""JSONL files and JSON lists of records: conversations, questions, captions, texts."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from mmframe.data.files import is_url, locate, short_name
from mmframe.data.index import Built
from mmframe.data.indexed_source import IndexedSource
from mmframe.data.json_ranges import record_ranges
from mmframe.data.pictures import FilePart
from mmframe.data.records import Record, parse_json, parse_record
from mmframe.data.unpack import is_unpacked
from mmframe.errors import UserError
from mmframe.registry import register


@register("source")
class JsonlRecords(IndexedSource):
    """JSONL files, or JSON files that hold a list, of records: the format of LLaVA and InternVL, and ours.

    A record is {"id", "image": path or list of paths, ...} with one of "conversations": [{"from": "human" | "gpt",
    "value": text}, ...], "questions": [[question, answer], ...], "caption": text, or "text": text without a picture.
    The first time, where each record begins is found and kept; afterwards a million records open in a moment, and a
    record is read when it is asked for.

    Args:
        annotations: The files: paths, URLs that fsspec knows, patterns like `part-{00..99}.jsonl` or `*.jsonl`, or a
            folder of them; may be compressed (.gz, .bz2, .xz). `demo:x/y` is a file of the demo data.
        image_folder: What paths of pictures are relative to; null: the folder of their file.
    """

    suffixes = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
    guessed_by = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
    toy_args = {"annotations": "train.jsonl"}

    def __init__(self, annotations: str | list[str], image_folder: str | None = None, **mix: Any) -> None:
        super().__init__(annotations, **mix)
        if image_folder is not None and is_url(image_folder):
            raise UserError(
                f"{type(self).__name__}: image_folder={image_folder!r} is a URL; single pictures are read from local "
                "folders, pictures far away out of tar shards (TarShards) or Parquet files (ParquetImages)"
            )
        self.image_folder = None if image_folder is None else Path(locate(image_folder))
        self.said: int | None = None  # how many records somebody says there are

    def index_kind(self) -> str:
        return "records 1"

    def index_file(self, file: str) -> Built:
        return record_ranges(file)

    def open(self) -> None:
        """Makes the records readable; where somebody said how many there are and was wrong, tells so."""
        if self._rows is not None:
            return
        super().open()
        if self.said not in (None, len(self)):
            print(f"data: {self.named} holds {len(self):,} records, not {self.said:,}; all of them are used")

    def record(self, index: int) -> Record:
        file, arrays, row = self.rows.find(index)
        where = f"{file} record {row + 1}"
        part = FilePart(file, int(arrays["offset"][row]), int(arrays["size"][row]), f"record {row + 1}")
        data = self.parse(part.read(), where)
        return parse_record(data, where, short_name(file), row + 1, self._folder(file, data))

    def parse(self, row: bytes, where: str) -> Any:
        """What a row says, in the form that `parse_record` takes; a hook for other forms."""
        return parse_json(row, where)

    def _folder(self, file: str, data: Any) -> Path | tuple[()]:
        if self.image_folder is not None:
            return self.image_folder
        beside = _folder_of(file)
        if beside is not None:
            return beside
        if isinstance(data, dict) and data.get("image"):
            raise UserError(f"{type(self).__name__}: {self.named} names pictures; say where they lie: image_folder")
        return ()  # records without pictures are not held up


@lru_cache(maxsize=4096)
def _folder_of(file: str) -> Path | None:
    """The folder of a file, unless no pictures can lie there: far away, or in the cache."""
    return None if is_url(file) or is_unpacked(file) else Path(file).parent
