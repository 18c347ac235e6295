"""Tar shards of pictures with captions or records beside them: WebDataset, img2dataset."""

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmframe.data.files import PICTURES, short_name
from mmframe.data.index import Built
from mmframe.data.indexed_source import IndexedSource
from mmframe.data.pictures import FilePart
from mmframe.data.records import Record, parse_json, parse_record
from mmframe.data.tar import Member, members
from mmframe.errors import BadRecord
from mmframe.registry import register

_TEXTS = (".json", ".txt")
_SAYS = ("conversations", "questions", "caption", "text")


@register("source")
class TarShards(IndexedSource):
    """Tar shards as WebDataset and img2dataset write them: KEY.jpg with KEY.txt or KEY.json.

    KEY.txt holds a caption. KEY.json is a record with "conversations", "questions", "caption" or "text" (that of
    img2dataset has "caption"); where it says none of these, KEY.txt is taken. Several pictures of a sample are
    KEY.0.jpg, KEY.1.jpg, ..., in the order of their numbers. Members of other kinds are left alone. The first time,
    the headers of each shard are read and where its members lie is kept; afterwards a sample is read when it is asked
    for. A compressed shard (.tar.gz) is unpacked once, into the cache folder.

    Args:
        shards: The shards: paths, URLs that fsspec knows, patterns like `{00000..00099}.tar` or `*.tar`, or a folder.
    """

    suffixes = (".tar", ".tar.gz", ".tgz")
    guessed_by = (".tar", ".tar.gz", ".tgz")
    row_array = "member_end"
    toy_args = {"shards": "{00000..00001}.tar"}

    def __init__(self, shards: str | list[str], **mix: Any) -> None:
        super().__init__(shards, **mix)

    def index_kind(self) -> str:
        return "tar samples 1"

    def index_file(self, file: str) -> Built:
        """Samples in the order of their first members; of each, "member_end": its members come before this one.

        Members: "offset", "size" (bytes) and "name_end", their place in "name".
        """
        samples = _samples(list(members(file)))
        flat = [member for sample in samples for member in sample]
        names = [member.name.encode(errors="replace") for member in flat]
        return {
            "member_end": np.cumsum([len(sample) for sample in samples], dtype=np.int32),
            "offset": np.array([member.offset for member in flat], dtype=np.int64),
            "size": np.array([member.size for member in flat], dtype=np.int64),
            "name_end": np.cumsum([len(name) for name in names], dtype=np.int32),
            "name": np.frombuffer(b"".join(names), dtype=np.uint8),
        }

    def record(self, index: int) -> Record:
        file, arrays, row = self.rows.find(index)
        first, end = _span(arrays["member_end"], row)
        names = [arrays["name"][slice(*_span(arrays["name_end"], n))].tobytes().decode() for n in range(first, end)]
        places = zip(arrays["offset"][first:end].tolist(), arrays["size"][first:end].tolist(), names, strict=True)
        parts = [FilePart(file, *place) for place in places]
        pictures = [part for part in parts if _suffix(part.name) in PICTURES]
        texts = {_suffix(part.name): part for part in parts[len(pictures) :]}
        key = os.path.splitext((parts[-1] if texts else parts[0]).name)[0]
        return self._record(texts, pictures, short_name(file), key)

    def _record(self, texts: dict[str, FilePart], pictures: Sequence[FilePart], shard: str, key: str) -> Record:
        said: Any = None
        if ".json" in texts:
            where = str(texts[".json"])
            said = parse_json(texts[".json"].read(), where)
            if not isinstance(said, dict):
                raise BadRecord("not a record", f"data: {where} is not a record but a {type(said).__name__}")
        if not said or all(said.get(kind) is None for kind in _SAYS):
            if ".txt" not in texts:
                raise BadRecord("no caption", f"data: sample {key!r} of {shard} has no text beside its picture")
            where = str(texts[".txt"])
            said = {"caption": _decoded(texts[".txt"])}
        return parse_record({**said, "id": key}, where, shard, 0, pictures)


def _decoded(part: FilePart) -> str:
    try:
        return part.read().decode().strip()
    except UnicodeDecodeError as error:
        raise BadRecord("not Unicode", f"data: {part} is not UTF-8: {error}") from error


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _span(ends: np.ndarray, number: int) -> tuple[int, int]:
    return int(ends[number - 1]) if number else 0, int(ends[number])


def _samples(found: list[Member]) -> list[list[Member]]:
    """Members by sample: pictures in their order, then texts."""
    texts = {os.path.splitext(member.name)[0] for member in found if _suffix(member.name) in _TEXTS}
    samples: defaultdict[str, list[tuple[bool, int, Member]]] = defaultdict(list)
    for member in found:
        stem, suffix = os.path.splitext(member.name)
        if suffix.lower() in _TEXTS:
            samples[stem].append((True, -_TEXTS.index(suffix.lower()), member))
        elif suffix.lower() in PICTURES:
            head, _, number = stem.rpartition(".")
            # a picture belongs to the text of its own name, else to that without the number: x.1.jpg to x.txt
            if head and number.isdecimal() and stem not in texts:
                samples[head].append((False, int(number), member))
            else:
                samples[stem].append((False, -1, member))
    return [[member for _, _, member in sorted(sample)] for sample in samples.values()]
