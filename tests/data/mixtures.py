"""Sources for tests of mixtures: records in memory, pictures on disk."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from mmframe.data.mixture import MixtureData
from mmframe.data.records import Record
from mmframe.data.source import BadRecord, Source
from tests.data.support import embedder, processor


class Listed(Source):
    """Records given as a list; an entry that is a BadRecord is raised."""

    def __init__(self, records: list[Any], name: str = "listed", **mix: Any) -> None:
        super().__init__(**mix)
        self.records, self.name = records, name
        self.__dict__["spec"] = {"class_path": "Listed", "init_args": {"name": name}}

    def open(self) -> None:
        pass

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> Record:
        record = self.records[index]
        if isinstance(record, BadRecord):
            raise record
        return record

    def files(self) -> Iterable[tuple[str, int]]:
        return [(self.name, len(self.records))]


def pairs(folder: Path, count: int, seed: int = 0, name: str = "pair") -> list[Record]:
    """Pictures with captions of different lengths; some records have two pictures."""
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for n in range(count):
        path = folder / f"{name}-{n}.png"
        size = draw.choice([(20, 20), (40, 20), (33, 17), (16, 64)])
        Image.new("RGB", size, (n * 7 % 256, 90, draw.randrange(256))).save(path)
        images = (path,) if n % 5 else (path, path)
        records.append(Record(f"{name}{n}", images, caption=f"{name} {n} " + "word " * draw.randrange(8)))
    return records


def texts(count: int, name: str = "text") -> list[Record]:
    return [Record(f"{name}{n}", (), text=f"{name} number {n} " + "says " * (n % 7)) for n in range(count)]


def questions(folder: Path, count: int, name: str = "vqa") -> list[Record]:
    found = pairs(folder, count, 3, name)
    return [Record(r.key, r.images[:1], questions=(("what?", "a thing"), ("red?", "no"))) for r in found]


def talk(key: str, *images: Path, answer: str = "yes") -> Record:
    turns = ({"from": "human", "value": "<image>" * len(images) + "\nis it?"}, {"from": "gpt", "value": answer})
    return Record(key, images, conversation=turns)


def mixture(sources: dict[str, Source], **options: Any) -> MixtureData:
    """A connected mixture over the tests' processor and patch embedder."""
    data = MixtureData(sources, **({"max_tokens": 200, "max_tiles": 2} | options))
    data.connect(processor(image_start="<img>", image_end="</img>"), embedder())
    return data
