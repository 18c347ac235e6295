"""Quarantine: records that could not be used are written down with the reason, counted, and limited in number."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmframe.errors import UserError

FILE = "quarantine.jsonl"
TOO_LONG = "too long"
_FEW = 1000


class Bad(NamedTuple):
    """A record that was left out.

    Attributes:
        source: name of its source in the mixture.
        record: its index there.
        reason: a few words, by which they are counted.
        message: one line that names the record, the file and what is wrong.
    """

    source: str
    record: int
    reason: str
    message: str


class Quarantine:
    """Keeps account of the records that a run left out.

    Args:
        max_fraction: of the records seen; more is an error.
        total: records of an epoch, good and bad: where there are few, the limit holds from the first on, else it
            lets the first thousand pass before it is strict.
    """

    def __init__(self, max_fraction: float, total: int) -> None:
        self.max_fraction, self.total = max_fraction, total
        self.file: Path | None = None
        self.reasons: Counter[str] = Counter()
        self.seen = self.bad = 0
        self._written: set[tuple[str, int]] = set()

    def open(self, folder: Path) -> None:
        """Names the folder of the run, where quarantine.jsonl is appended to; what it holds is not written again."""
        self.file = folder / FILE
        if self.file.is_file():
            for line in self.file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    row = json.loads(line)
                    self._written.add((row["source"], row["record"]))
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue  # cut off by a kill

    def planned(self, bad: Sequence[Bad], total: int) -> None:
        """Takes note of what measuring found among `total` records.

        Raises:
            UserError: more than max_fraction of all are bad; with counts by reason and the file.
        """
        self._note(bad)
        self._limit(sum(each.reason != TOO_LONG for each in bad), total, total, bad)

    def add(self, bad: Sequence[Bad], seen: int) -> None:
        """Counts `seen` records more, of which some turned out to be bad.

        Raises:
            UserError: more than max_fraction of all were; with counts by reason and the file.
        """
        self.seen += seen
        self.bad += len(bad)
        self._note(bad)
        self._limit(self.bad, self.seen, max(self.seen, min(self.total, _FEW)), bad)

    def _note(self, bad: Sequence[Bad]) -> None:
        new = {(each.source, each.record): each for each in bad if (each.source, each.record) not in self._written}
        self.reasons.update(each.reason for each in new.values())
        self._write(list(new.values()))
        self._written |= new.keys()

    def _limit(self, count: int, seen: int, of: int, bad: Sequence[Bad]) -> None:
        if count > self.max_fraction * of:
            example = next((each.message for each in bad if each.reason != TOO_LONG), "")
            raise UserError(
                f"data: {count:,} of {seen:,} records cannot be used ({self.told()}), more than max_bad_fraction="
                f"{self.max_fraction:g} allows; {example}" + (f"; all are listed in {self.file}" if self.file else "")
            )

    def told(self) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common()) or "none"

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen, "bad": self.bad}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen, self.bad = state["seen"], state["bad"]

    def _write(self, found: list[Bad]) -> None:
        if self.file is None or not found:
            return
        lines = "".join(json.dumps(each._asdict(), ensure_ascii=False) + "\n" for each in found)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # one write to a file opened for appending: ranks do not mix their lines; a kill may cut off the last
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, lines.encode())
        finally:
            os.close(descriptor)
