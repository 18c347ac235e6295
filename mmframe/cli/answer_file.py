"""Files of answers: rows are appended, whatever stands in one survives a kill, and it says what made it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from mmframe.cli.question_rows import Question
from mmframe.cli.run_dir import RunDir, read_json, write_atomically
from mmframe.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

WAYS = "use another --out, or --force to start over"


class RowFile:
    """JSONL of answers, open for more. Use it in a `with`; a second process is kept out.

    Args:
        path: The file; an unfinished one is continued.
        writes: False in a process that answers along with the one that writes: it only keeps count.

    Attributes:
        rows: What stood in it.
        done: Rows that stand in the file.
        bad: Those of them that hold an error.
        torn: Whether a last line without its end was cut off.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self.rows: list[dict[str, Any]] = []
        self.done, self.bad, self.torn = 0, 0, False

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path if self.writes else os.devnull, "ab")
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _lock(self) -> None:
        if fcntl is not None and self.writes:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"{self.path}: another process writes it; wait for it, or use another --out") from error

    def _read(self) -> None:
        self.rows, whole = read_rows(self.path)
        self.torn = whole < self.path.stat().st_size
        if self.torn and self.writes:  # a kill in the middle of a write; the row is made again
            os.truncate(self.path, whole)
        self.done = len(self.rows)
        self.bad = sum("error" in row for row in self.rows)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds the next rows; when it returns, they are on the disk."""
        if self.writes:
            self._file.write(as_lines(rows))
            self._file.flush()
            os.fsync(self._file.fileno())
        self.done += len(rows)
        self.bad += sum("error" in row for row in rows)


class AnswerFile(RowFile):
    """What `mmframe generate` writes: rows in the order of the data, and `NAME.meta.json` beside it.

    Args:
        path: The file; an unfinished one is continued.
        force: Start over; what is there is set aside as `NAME.old-N`.
        writes: As RowFile.
    """

    def __init__(self, path: Path, force: bool = False, writes: bool = True) -> None:
        super().__init__(path, writes)
        self.meta = path.with_name(f"{path.name}.meta.json")
        if force and writes:
            RunDir(self.path).set_aside()
            RunDir(self.meta).set_aside()

    def _read(self) -> None:
        super()._read()
        self._settings = read_json(self.meta) if self.done else {}
        if self.done and not self._settings:
            raise UserError(f"{self.path}: holds rows, but {self.meta} does not say what made them; {WAYS}")

    def check(self, questions: Sequence[Question]) -> None:
        """Makes sure that row k of the file answers question k.

        Raises:
            UserError: it does not; names the first such row.
        """
        if self.done > len(questions):
            raise UserError(f"{self.path}: holds {self.done} rows, the data has {len(questions)}; {WAYS}")
        for number, (row, question) in enumerate(zip(self.rows, questions, strict=False), 1):
            there, here = row["id"], question.id
            if there != here:
                raise UserError(f"{self.path} line {number}: is of {there!r}, the data has {here!r} there; {WAYS}")
            if row.get("prompt", question.prompt) != question.prompt:
                raise UserError(f"{self.path} line {number}: {here!r} has another prompt in the data; {WAYS}")

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Notes what makes the answers, before the first is written; may be called again with more.

        Raises:
            UserError: the rows that stand here were made with something else; names it.
        """
        meta = self.meta if self.writes else Path(os.devnull)
        self._settings = claim(self.path, meta, self._settings, settings, self.done)


def claim(path: Path, meta: Path, before: Mapping[str, Any], settings: Mapping[str, Any], done: int) -> dict[str, Any]:
    """Notes in `meta` what makes the answers in `path`.

    Args:
        path: File or folder of the answers, for messages.
        meta: JSON file of settings.
        before: What made those that are there; {} where none is.
        settings: What makes the next, plain data.
        done: Number of those that are there.

    Returns:
        Both together.

    Raises:
        UserError: the answers were made with something else; names it.
    """
    told = json.loads(json.dumps(settings))
    changes = [f"{key} {before[key]!r} -> {told[key]!r}" for key in told if before.get(key, told[key]) != told[key]]
    if changes:
        raise UserError(f"{path}: its {done} rows were made with {', '.join(changes)}; {WAYS}")
    both = {**before, **told}
    if meta != Path(os.devnull):
        write_atomically(meta, json.dumps(both, indent=2, ensure_ascii=False) + "\n")
    return both


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Complete rows of a file of answers, and the number of bytes that they take.

    Raises:
        UserError: a line is none of ours.
    """
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    rows = []
    for number, line in enumerate(text[:whole].split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or "id" not in row or not ("answer" in row or "error" in row):
            raise UserError(f"{path} line {number}: was not written by mmframe; {WAYS}")
        rows.append(row)
    return rows, whole


def as_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as the file holds them."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", errors="replace")
