"""The synthetic captions that Mono-InternVL was pre-trained on in S1.2, as they were published."""

from collections.abc import Iterator
from string import Formatter
from typing import Any

from components.sources.jsonl import JsonlRecords
from mmframe.data.index import Arrays, Built
from mmframe.data.json_ranges import record_ranges
from mmframe.data.tar import members
from mmframe.errors import BadRecord, UserError
from mmframe.registry import register


@register("source")
class CaptionArchive(JsonlRecords):
    """Captions in JSONL files inside tar archives, with their pictures in a folder: S1.2 of Mono-InternVL.

    Known of the Hugging Face data set OpenGVLab/Mono-InternVL-2B-Synthetic-Data: six archives, group1.tar.gz to
    group6.tar.gz (16.5 GB), with 3,072 .jsonl files of 84,331 lines each, 259,064,832 short captions in all, by
    InternVL-8B for pictures of Laion-2B, Coyo-700M and SAM. The pictures are not in it. Not known, and assumed: what
    the keys of a line are called. A line with "conversations" is read as JsonlRecords reads it; else `caption` and
    `picture` say where the caption and the picture's path are. If the lines have URLs, img2dataset makes shards of
    pictures and captions from them, which TarShards reads.

    Archives are unpacked once, into the cache folder. Folders with the unpacked .jsonl files are as good.

    Args:
        archives: The archives: paths, patterns like `group{1..6}.tar.gz`, or a folder of .jsonl files.
        image_folder: What paths of pictures are relative to.
        picture: Path of a record's picture in image_folder, with keys of its line in braces: `{key}.jpg`.
        caption: Key of the caption in a line.
    """

    suffixes = (".jsonl",)
    guessed_by = ()
    toy_args = {"archives": "group1.tar.gz", "image_folder": "."}

    def __init__(
        self,
        archives: str | list[str],
        image_folder: str,
        picture: str = "{image}",
        caption: str = "caption",
        **mix: Any,
    ) -> None:
        super().__init__(archives, image_folder, **mix)
        try:
            list(Formatter().parse(picture))
        except ValueError as error:
            raise UserError(
                f"CaptionArchive: picture={picture!r}: {error}; keys stand in braces: {{key}}.jpg"
            ) from error
        self.picture, self.caption = picture, caption

    def index_kind(self) -> str:
        return "captions 1"

    def index_file(self, file: str) -> Built:
        return _in_archive(file) if file.endswith(".tar") else record_ranges(file)

    def parse(self, row: bytes, where: str) -> Any:
        data = super().parse(row, where)
        if not isinstance(data, dict) or "conversations" in data:
            return data
        try:
            return {"image": self.picture.format_map(data), "caption": data[self.caption]}
        except (LookupError, ValueError, AttributeError) as error:
            raise BadRecord(
                "not a record",
                f"data: {where} has the keys {', '.join(data)}, which picture={self.picture!r} and "
                f"caption={self.caption!r} do not fit",
            ) from error


def _in_archive(file: str) -> Iterator[Arrays]:
    """The records of all .jsonl files in a tar archive; offsets are those in the archive."""
    inside = sorted(member for member in members(file) if member.name.endswith(".jsonl"))
    if not inside:
        raise UserError(f"data: {file} holds no .jsonl file")
    for member in inside:
        yield from record_ranges(file, member.offset, member.size)
