"""Several files whose indexes are one: finds the file that a row lies in."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from mmframe.data.files import base_name, in_threads, is_url, stamps
from mmframe.data.index import Arrays, Built, Index, cached_index, pieces

_LARGE = 1 << 30  # bytes; to index more takes long enough to be told about
_MOST_KNOWN = 1024


class IndexedFiles:
    """Rows of several files, numbered one after the other.

    Each file is indexed by itself and kept, several at a time: a new file in a list of thousands, or a kill, costs
    the files that are missing and no more. All together are one index of a few arrays, so that opening it again and
    sending it to a loader process cost the same for one file and for thousands.

    Args:
        files: paths or URLs, as `mmframe.data.files.expand` gives them.
        kind: of index, see `cached_index`.
        build: makes the arrays of one file; they may be in pieces, and are there, empty, for a file without rows.
        rows: the array that has one entry for each row.
    """

    def __init__(self, files: Sequence[str], kind: str, build: Callable[[str], Built], rows: str) -> None:
        self.rows = rows
        self.index = cached_index(files, f"{kind}, all", lambda: _joined(files, kind, build))
        self._known: dict[int, tuple[str, Arrays, int]] = {}  # files that rows were found in, and their first rows

    def __len__(self) -> int:
        return int(self.index[f"{self.rows}.end"][-1])

    def find(self, row: int) -> tuple[str, Arrays, int]:
        """Where a row lies: the file, the arrays of that file's index, and the number of the row in that file."""
        ends = self.index[f"{self.rows}.end"]
        number = int(np.searchsorted(ends, row, side="right"))
        known = self._known.get(number)
        if known is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            arrays = {name: self._section(name, number) for name in self.index if not name.endswith(".end")}
            first = int(ends[number - 1]) if number else 0
            known = self._known[number] = os.fsdecode(arrays.pop("file").tobytes()), arrays, first
        file, arrays, first = known
        return file, arrays, row - first

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_known": {}}

    def files(self) -> Iterator[tuple[str, int]]:
        """(name, size in bytes) of each file."""
        for number, size in enumerate(self.index["bytes"].tolist()):
            yield base_name(os.fsdecode(self._section("file", number).tobytes())), size

    def _section(self, name: str, number: int) -> np.ndarray:
        ends = self.index[f"{name}.end"]
        return self.index[name][int(ends[number - 1]) if number else 0 : int(ends[number])]


def _joined(files: Sequence[str], kind: str, build: Callable[[str], Built]) -> Iterator[Arrays]:
    """The arrays of all files, file by file, and with each file where its part of every array ends."""
    sizes = [each.size for each in stamps(files)]
    if sum(sizes) >= _LARGE:
        print(f"data: indexing {base_name(files[0])}{_and_more(files)}, {sum(sizes) / 1e9:,.1f} GB; this is done once")

    def of(file: str) -> Index:
        return cached_index(file, kind, lambda: build(file))

    if len(files) > 1:
        in_threads(lambda file: len(of(file)), files, 16 if any(map(is_url, files)) else os.cpu_count() or 1)
    ends: Counter[str] = Counter()
    for file, size in zip(files, sizes, strict=True):
        alone = len(files) == 1  # then its own index would be the same again
        own = {"file": np.frombuffer(os.fsencode(file), np.uint8), "bytes": np.array([size], np.int64)}
        for piece in chain(pieces(build(file) if alone else of(file)), [own]):
            ends.update({name: len(array) for name, array in piece.items()})
            yield piece
        yield {f"{name}.end": np.array([end], np.int64) for name, end in ends.items()}


def _and_more(files: Sequence[str]) -> str:
    return f" and {len(files) - 1:,} more files" if len(files) > 1 else ""
