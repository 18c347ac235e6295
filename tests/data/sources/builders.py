"""Small data of every format, and what makes records comparable."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from components.sources.captions import CaptionArchive
from components.sources.folder import ImageFolder
from components.sources.jsonl import JsonlRecords
from components.sources.meta_file import MetaFile
from components.sources.parquet import ParquetImages
from components.sources.tar_shards import TarShards
from components.sources.text import TextCorpus
from mmframe.data.records import Record
from mmframe.data.source import Source


def picture(number: int = 0) -> bytes:
    """A PNG of 4 x 3 pixels whose colour says which it is."""
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (number % 256, 50, 200)).save(file, "PNG")
    return file.getvalue()


def colour(record: Record, place: int = 0) -> int:
    """The number with which `picture` made a record's picture."""
    from mmframe.data.pictures import open_picture

    return open_picture(record.images[place]).getpixel((0, 0))[0]  # type: ignore[index]


def plain(record: Record) -> dict[str, Any]:
    """All that a record holds, pictures as their names and bytes."""
    images = [(str(image), image.read_bytes() if isinstance(image, Path) else image.read()) for image in record.images]
    return {**vars(record), "images": images}


def everything(sources: list[Source]) -> list[dict[str, Any]]:
    """All records of some opened sources."""
    return [plain(source.record(number)) for source in sources for number in range(len(source))]


def read_elsewhere(pickled: bytes, answers: Any) -> None:
    """Puts all records of some lists of sources into a queue; for another process."""
    answers.put([everything(sources) for sources in pickle.loads(pickled)])


def chat(number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": f"r{number}",
        "image": f"{number}.png",
        "conversations": [
            {"from": "human", "value": f"<image>\nWas ist das, größer als ½? {number}"},
            {"from": "gpt", "value": f"这是 {number}"},
        ],
    } | more


def write_jsonl(file: Path, records: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in records)
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return file


def write_tar(file: Path, members: Mapping[str, bytes], **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz" if file.suffix in (".gz", ".tgz") else "w", **options) as tar:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return file


def chats(folder: Path, count: int = 5) -> Path:
    """A JSONL file with its pictures beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(picture(number))
    return write_jsonl(folder / "train.jsonl", [chat(number) for number in range(count)])


def shard(file: Path, first: int = 0, count: int = 4) -> Path:
    members = {}
    for number in range(first, first + count):
        members[f"{number:06d}.png"] = picture(number)
        members[f"{number:06d}.txt"] = f"caption {number}".encode()
    return write_tar(file, members)


def _jsonl(folder: Path) -> Source:
    return JsonlRecords(str(chats(folder)))


def _meta_file(folder: Path) -> Source:
    chats(folder / "one"), chats(folder / "two", 3)
    entry = {"data_augment": True, "repeat_time": 2, "max_dynamic_patch": 6}
    meta = {
        name: {"root": name, "annotation": f"{name}/train.jsonl", "length": length, **entry}
        for name, length in (("one", 5), ("two", 3))
    }
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return MetaFile(str(folder / "meta.json"))


def _tar_shards(folder: Path) -> Source:
    for number in range(3):
        shard(folder / f"{number:05d}.tar", 4 * number)
    return TarShards(str(folder / "{00000..00002}.tar"))


def _captions(folder: Path) -> Source:
    for number in range(3):
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        (folder / "pictures" / f"{number}.png").write_bytes(picture(number))
    lines = "".join(json.dumps({"image": f"{n}.png", "caption": f"a picture {n}"}) + "\n" for n in range(3))
    write_tar(folder / "group1.tar.gz", {"group1/00001.jsonl": lines.encode(), "group1/00000.jsonl": lines.encode()})
    return CaptionArchive(str(folder / "group1.tar.gz"), image_folder=str(folder / "pictures"))


def _parquet(folder: Path) -> Source:
    write_parquet(folder / "train.parquet", {"image": [{"bytes": picture(n), "path": None} for n in range(7)],
                                             "caption": [f"caption {n}" for n in range(7)]})  # fmt: skip
    return ParquetImages(str(folder / "*.parquet"))


def write_parquet(file: Path, columns: dict[str, list[Any]], group: int = 3) -> Path:
    import pyarrow
    from pyarrow import parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), file, row_group_size=group)
    return file


def _folder(folder: Path) -> Source:
    for number in range(4):
        place = folder / ("inside" if number % 2 else ".") / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture(number))
        place.with_suffix(".txt").write_text(f"Bild {number} ß\n", encoding="utf-8")
    return ImageFolder(str(folder))


def _text(folder: Path) -> Source:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.txt").write_text("first paragraph\ngoes on\n\nzweiter Absatz, größer\n\n\n第三段\n", encoding="utf-8")
    write_jsonl(folder / "b.jsonl", [{"text": "eins\n\nzwei"}, {"text": "x" * 9000}])
    with gzip.open(folder / "c.txt.gz", "wb") as file:
        file.write(b"packed")
    return TextCorpus([str(folder / "a.txt"), str(folder / "b.jsonl"), str(folder / "c.txt.gz")])


BUILDERS: dict[str, Callable[[Path], Source]] = {
    "JsonlRecords": _jsonl,
    "MetaFile": _meta_file,
    "TarShards": _tar_shards,
    "CaptionArchive": _captions,
    "ParquetImages": _parquet,
    "ImageFolder": _folder,
    "TextCorpus": _text,
}
"""Source class -> writes a few records into a folder and gives the source of them, not opened."""
