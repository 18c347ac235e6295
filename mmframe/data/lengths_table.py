"""Lengths: how long the row of every record of a source will be, measured once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from mmframe.data.encoding import Encoder
from mmframe.data.source import BadRecord, Source
from mmframe.paths import cache_dir

_VERSION = 1
_CHUNK = 2048  # records that one process measures at a time
_COLUMNS = {"tokens": np.int32, "tiles": np.int16, "supervised": np.int32, "caption": np.int8}
_encoder: Encoder | None = None  # of a measuring process
_source: Source | None = None


@dataclass(frozen=True)
class Lengths:
    """Lengths of the records of one source, with its first prompt where they are captions.

    Attributes:
        tokens: int32 [n], all tokens of the row; 0 for a bad record.
        tiles: int16 [n], tiles of its pictures.
        supervised: int32 [n], tokens that are learnt.
        caption: int8 [n], 1 where the record is a caption, so that a prompt is asked.
        bad: index -> (reason, message) of records that cannot be learnt from.
        digest: of all of it: the same records give the same digest anywhere.
    """

    tokens: np.ndarray
    tiles: np.ndarray
    supervised: np.ndarray
    caption: np.ndarray
    bad: dict[int, tuple[str, str]]
    digest: str

    def reasons(self) -> Counter[str]:
        return Counter(reason for reason, _ in self.bad.values())


def lengths_of(
    source: Source,
    encoder: Encoder,
    max_tiles: int,
    prompt: str,
    processes: int = 1,
    fresh: bool = False,
    say: Callable[[str], None] | None = None,
    name: str = "",
) -> Lengths:
    """Measures an opened source, or reads what was measured before.

    Kept by the source's arguments, its files, the processor's arguments and the tile geometry; a run that meets a row
    of another length than was measured says so (see MixtureRows).

    Args:
        source: opened.
        encoder: of the model.
        max_tiles: most tiles of a record.
        prompt: asked where a record is a caption.
        processes: that measure; 1 is this one.
        fresh: measure in any case.
        say: is told that measuring goes on, and how fast, if it takes more than a few seconds.
        name: of the source, for `say`.
    """
    geometry = [encoder.embedder.image_size, encoder.embedder.per_tile, encoder.max_pixels, max_tiles, prompt]
    known_by = [_VERSION, source.spec, len(source), sorted(source.files()), encoder.processor.spec, geometry]
    folder = cache_dir() / "lengths" / hashlib.sha256(json.dumps(known_by).encode()).hexdigest()[:24]
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    if not (folder / "facts.json").is_file():
        _measure(source, encoder, max_tiles, prompt, processes, folder, say or (lambda text: None), name)
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    columns = {column: np.load(folder / f"{column}.npy", mmap_mode="r") for column in _COLUMNS}
    bad = {int(index): tuple(why) for index, why in facts["bad"].items()}
    return Lengths(**columns, bad=bad, digest=facts["digest"])  # type: ignore[arg-type]


def _measure(
    source: Source,
    encoder: Encoder,
    max_tiles: int,
    prompt: str,
    processes: int,
    folder: Path,
    say: Callable[[str], None],
    name: str,
) -> None:
    begun = told = time.monotonic()
    parts: dict[str, list[np.ndarray]] = {column: [] for column in _COLUMNS}
    bad: dict[int, tuple[str, str]] = {}
    done = 0
    for found in _chunks(source, encoder, max_tiles, prompt, processes):
        for column, dtype in _COLUMNS.items():
            parts[column].append(np.array(found[column], dtype=dtype))
        bad |= found["bad"]
        done += len(found["tokens"])
        if time.monotonic() - told > 5:
            told = time.monotonic()
            say(f"data: measuring {name}: {done:,} of {len(source):,} records, {done / (told - begun):,.0f} a second")
    columns = {c: np.concatenate(v) if v else np.zeros(0, _COLUMNS[c]) for c, v in parts.items()}
    digest = hashlib.sha256(b"".join(columns[c].tobytes() for c in _COLUMNS)).hexdigest()[:16]
    facts = {"records": done, "digest": digest, "bad": bad, "seconds": told - begun}
    write_folder(folder, columns, facts)


def _chunks(source: Source, encoder: Encoder, max_tiles: int, prompt: str, processes: int) -> Iterator[dict[str, Any]]:
    starts = range(0, len(source), _CHUNK)
    if processes < 2 or len(starts) < 2:
        _adopt(source, encoder)
        for start in starts:
            yield _measure_chunk(start, max_tiles, prompt)
        return
    context = get_context("fork" if os.name == "posix" else "spawn")
    with ProcessPoolExecutor(processes, context, _adopt, (source, encoder)) as pool:
        count = len(starts)
        yield from pool.map(_measure_chunk, starts, [max_tiles] * count, [prompt] * count)


def _adopt(source: Source, encoder: Encoder) -> None:
    global _source, _encoder
    _source, _encoder = source, encoder


def _measure_chunk(start: int, max_tiles: int, prompt: str) -> dict[str, Any]:
    assert _source is not None and _encoder is not None
    out: dict[str, Any] = {column: [] for column in _COLUMNS} | {"bad": {}}
    for index in range(start, min(start + _CHUNK, len(_source))):
        row = (0, 0, 0, 0)
        try:
            record = _source.record(index)
            tally = _encoder.measure(record, max_tiles, prompt)
            row = (tally.tokens, tally.num_tiles, tally.supervised_tokens, record.caption is not None)
        except BadRecord as error:
            out["bad"][index] = (error.reason, str(error))
        for column, value in zip(_COLUMNS, row, strict=True):
            out[column].append(value)
    return out


def write_folder(folder: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Arrays and facts.json in a folder that is there whole or not at all, whoever else is writing it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        (temporary / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        if folder.exists() and not (folder / "facts.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
        try:
            os.replace(temporary, folder)
        except OSError:
            if not (folder / "facts.json").is_file():  # else another process was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
