"""The folder of one task's answers: a shard for each rank while they are made, one file when all are there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from mmframe.cli.answer_file import WAYS, RowFile, as_lines, claim, read_rows
from mmframe.cli.run_dir import RunDir, read_json
from mmframe.errors import UserError
from mmframe.evaluate.ranks import Ranks
from mmframe.evaluate.record import ANSWERS
from mmframe.evaluate.scoring import Row

SETTINGS = "settings.json"
"""What made the answers; beside them."""


class AnswerFolder:
    """Answers by id, on the disk or (without a folder) in memory. Use it in a `with`, on all ranks.

    answers.RANK.jsonl   of a rank, in the order in which they were made; a kill loses at most the batch at work
    answers.jsonl        all, in the order of the task, with their scores; written at the end, shards are then removed
    settings.json        what made them

    Args:
        path: RESULTS/MODEL/TASK; None keeps answers in memory.
        ranks: This process and the others. They share the file system.
        force: Start over; what is there is set aside as `TASK.old-N`.

    Attributes:
        before: Answers of earlier runs, by id: the same on all ranks. What could not be asked then is asked again.
        made: Those of this process.
    """

    def __init__(self, path: Path | None, ranks: Ranks, force: bool = False) -> None:
        self.path, self.ranks, self.force = path, ranks, force
        self.before: dict[str, Row] = {}
        self.made: list[Row] = []
        self._shard: RowFile | None = None

    def __enter__(self) -> Self:
        if self.path is not None:
            self.ranks.on_first(self._begin)
            self._shard = RowFile(self.path / f"answers.{self.ranks.rank}.jsonl").__enter__()
            for file in self._files():
                self.before |= {row["id"]: row for row in read_rows(file)[0] if "error" not in row}
            self.ranks.gather(None)  # nobody writes before all have read
        return self

    def __exit__(self, *_: object) -> None:
        if self._shard is not None:
            self._shard.__exit__()
            self._shard = None

    def _begin(self) -> None:
        assert self.path is not None
        if self.force:
            RunDir(self.path).set_aside()
        self.path.mkdir(parents=True, exist_ok=True)

    def _files(self) -> list[Path]:
        """In an order in which a scored row is replaced by the same one without its score."""
        assert self.path is not None
        return [file for file in [self.path / ANSWERS, *sorted(self.path.glob("answers.*.jsonl"))] if file.is_file()]

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Notes what makes the answers.

        Raises:
            UserError: those that are there were made with something else; names it.
        """
        path = self.path
        if path is not None:
            before = read_json(path / SETTINGS) if self.before else {}
            self.ranks.on_first(lambda: claim(path, path / SETTINGS, before, settings, len(self.before)))

    def check(self, ids: Sequence[str]) -> None:
        """Makes sure that finishing with the answers of these examples would drop none that is there.

        Raises:
            UserError: it would; names one.
        """
        asked = set(ids)
        more = [key for key in self.before if key not in asked]
        if more:
            raise UserError(
                f"{self.path}: has {len(more)} answers beside the {len(asked)} asked for, {more[0]!r}; {WAYS}"
            )

    def append(self, rows: Sequence[Row]) -> None:
        """Adds rows; when it returns, they are on the disk."""
        self.made += rows
        if self._shard is not None and rows:
            self._shard.append(rows)

    def all_rows(self) -> dict[str, Row]:
        """Answers of all runs and ranks, by id, without their scores; waits for the slowest rank."""
        found = dict(self.before)
        for rows in self.ranks.gather(self.made):
            found |= {row["id"]: row for row in rows}
        return {key: {name: value for name, value in row.items() if name != "score"} for key, row in found.items()}

    def finish(self, rows: Sequence[Row]) -> None:
        """Writes answers.jsonl and removes the shards."""
        if self.path is None or not self.ranks.first:
            return
        temporary = self.path / f".{ANSWERS}.new"
        with open(temporary, "wb") as file:
            file.write(as_lines(rows))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path / ANSWERS)
        for shard in self.path.glob("answers.*.jsonl"):
            shard.unlink()
