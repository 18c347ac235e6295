"""EpochPlan: which draws share a row in an epoch, and in which order the rows come. Made once, kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from mmframe.data.lengths_table import Lengths, write_folder
from mmframe.data.mix import Draws, Mix
from mmframe.data.order import permutation
from mmframe.data.packing import WINDOW, Packs, pack
from mmframe.paths import cache_dir

_VERSION = 1
_BLOCK = 256  # rows that are resolved together: a call of numpy costs as much for one as for thousands
_GROUPS = 50  # so many groups are sorted by length together, as is usual for grouping by length


@dataclass(frozen=True)
class RowShape:
    """How draws become rows.

    Attributes:
        tokens: most tokens of a row.
        packing: several draws share a row.
        group: without packing, so many rows (of a global batch) are of like length; 1 keeps the order as it is.
    """

    tokens: int
    packing: bool
    group: int = 1


@dataclass(frozen=True)
class Visits:
    """The records of a row, in order.

    Attributes:
        part: numbers of their sources.
        record: their indices there.
        prompt: numbers of the prompts they are asked with.
        tokens: how long they will be.
        noise: in [0, 1), drawn for each visit.
    """

    part: list[int]
    record: list[int]
    prompt: list[int]
    tokens: list[int]
    noise: list[float]


class EpochPlan:
    """Plans epochs: draws in order -> rows.

    Every epoch has as many rows as the first, so that the data is sized: what an epoch has too many waits for the
    next one; where it has too few, full rows are halved.

    Args:
        mix: the order of draws.
        lengths: of each source.
        extra: for each source, tokens that each of its prompts adds to those of the first one.
        shape: how draws become rows.
    """

    def __init__(self, mix: Mix, lengths: Sequence[Lengths], extra: Sequence[np.ndarray], shape: RowShape) -> None:
        self.mix, self.lengths, self.extra, self.shape = mix, lengths, extra, shape
        known_by = [
            _VERSION,
            mix.seed,
            mix.counts.tolist(),
            mix.sizes,
            [table.digest for table in lengths],
            [tokens.tolist() for tokens in extra],
            [shape.tokens, shape.packing, shape.group],
        ]
        self.digest = hashlib.sha256(json.dumps(known_by).encode()).hexdigest()[:24]
        self.folder = cache_dir() / "plans" / self.digest
        self._known: tuple[int, Packs] | None = None
        self._block: tuple[tuple[int, int], list[Visits]] = ((-1, -1), [])

    def __len__(self) -> int:
        """Rows of any epoch."""
        return len(self.rows(0)) if self._known is None else len(self._known[1])

    def rows(self, epoch: int) -> Packs:
        """The rows of an epoch: draws, see `Mix`."""
        if self._known is None or self._known[0] != epoch:
            folder = self._made(epoch)
            draws, starts = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("draws", "starts"))
            self._known = (epoch, Packs(draws, starts))  # one is enough: epochs come one after another
        return self._known[1]

    def visits(self, epoch: int, index: int) -> Visits:
        """The records of a row of an epoch."""
        block, place = divmod(index, _BLOCK)
        if self._block[0] != (epoch, block):
            self._block = ((epoch, block), list(self._visits(self.rows(epoch), block * _BLOCK)))
        return self._block[1][place]

    def _visits(self, rows: Packs, first: int) -> Iterator[Visits]:
        starts = np.asarray(rows.starts[first : first + _BLOCK + 1])
        draws = self.mix.resolve(rows.draws[starts[0] : starts[-1]])
        facts = (draws.part, draws.record, self.prompts(draws), self.tokens(draws), self.mix.chance(draws, 14))
        for start, end in pairwise(starts - starts[0]):
            yield Visits(*(fact[start:end].tolist() for fact in facts))

    def prompts(self, draws: Draws) -> np.ndarray:
        """int64: which of its source's prompts each draw asks."""
        counts = np.array([len(tokens) for tokens in self.extra])[draws.part]
        return (self.mix.chance(draws, 12) * counts).astype(np.int64)

    def tokens(self, draws: Draws) -> np.ndarray:
        """int64: tokens of each draw."""
        prompts = self.prompts(draws)
        found = np.empty(len(draws.part), np.int64)
        for number in np.unique(draws.part):
            here = draws.part == number
            table, record = self.lengths[number], draws.record[here]
            found[here] = table.tokens[record] + table.caption[record] * self.extra[number][prompts[here]]
        return found

    def _made(self, epoch: int) -> Path:
        """Folder of an epoch's plan, made if it is not there."""
        folder = self.folder / f"epoch-{epoch:05d}"
        if (folder / "facts.json").is_file():
            return folder
        carried = np.load(self._made(epoch - 1) / "carried.npy") if epoch else np.zeros(0, np.int64)
        packs = Packs.of([group for window in self._windows(epoch, carried) for group in self._grouped(window, epoch)])
        left = np.zeros(0, np.int64)
        if epoch:
            first = np.load(self._made(0) / "starts.npy", mmap_mode="r")
            packs, left = packs.resized(len(first) - 1)
        facts = {"rows": len(packs), "draws": len(packs.draws), "carried": len(left)}
        write_folder(folder, {"draws": packs.draws, "starts": packs.starts, "carried": left}, facts)
        return folder

    def _windows(self, epoch: int, carried: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(self.mix), WINDOW):
            places = np.arange(start, min(start + WINDOW, len(self.mix)))
            draws = self.mix.order(epoch, places)
            yield draws if start else np.concatenate([carried, draws])

    def _grouped(self, draws: np.ndarray, epoch: int) -> Iterator[np.ndarray]:
        """Rows of one window of draws."""
        if not self.shape.packing and self.shape.group <= 1:
            yield from draws[:, None]
            return
        tokens = self.tokens(self.mix.resolve(draws))
        seed, tag = self.mix.seed or 0, int(draws[0])
        if self.shape.packing:
            packs = [draws[np.sort(items)] for items in pack(tokens.tolist(), self.shape.tokens)]
            # the longest were packed first: without this a window's first rows would hold few samples each
            yield from (packs[i] for i in permutation(len(packs), seed, epoch, tag, 13))
            return
        span = self.shape.group * _GROUPS
        for start in range(0, len(draws), span):
            here = draws[start : start + span]
            by_length = here[np.argsort(-tokens[start : start + span], kind="stable")]
            groups = np.split(by_length, range(self.shape.group, len(here), self.shape.group))
            whole = [g for g in groups if len(g) == self.shape.group]
            for i in permutation(len(whole), seed, epoch, tag, start, 13):
                yield from whole[i][:, None]
            for group in groups[len(whole) :]:  # the rest, so that groups and batches stay aligned
                yield from group[:, None]
