"""Which questions share a row: the plan of one pass over a source, a pure function of (seed, pass)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mmframe.data.order import hash64, permutation, systematic_counts, uniform
from mmframe.data.records import Record
from mmframe.errors import UserError

_PASSES_KEPT = 8  # an epoch may mix the end of one pass with the start of the next
BALANCE = ("none", "answer", "question")


class SourcePlan:
    """Cuts a source into rows, anew for each pass.

    A conversation is one row. The questions of a record are dealt to as few rows of at most `per_row` questions as
    they fit in, evenly, in a new order for each pass; every question is asked once a pass.

    With `balance` the questions of a pass are drawn instead, as many as there are, each as often as its weight says
    (to within one draw for every answer, see `systematic_counts`); a question may come twice or not at all.
    Conversations come once in any case.
        answer    every answer equally often: weight 1 / (records with that answer).
        question  the answers of each wording equally often, wordings as often as they were:
                  weight (times the wording occurs) / (its different answers) / (times it has this answer). Knowing the
                  wording alone is then worth nothing where a wording has several answers.

    Args:
        records: the records of the source.
        per_row: most questions of a row; None puts all questions of a record into one.
        balance: none, answer or question.
        seed: of the run.
        stream: number of the source, so that sources are shuffled differently.
        shuffle: False keeps records and questions in their order (validation).

    Attributes:
        num_rows: rows of a pass. With `balance` a draw can make a few more or less: the surplus is left out, a gap
            is filled from the start of the pass.
    """

    def __init__(
        self,
        records: Sequence[Record],
        per_row: int | None = None,
        balance: str = "none",
        seed: int = 0,
        stream: int = 0,
        shuffle: bool = True,
    ) -> None:
        if balance not in BALANCE:
            raise UserError(f"data: balance={balance!r} is not known; use one of {', '.join(BALANCE)}")
        if per_row is not None and per_row < 1:
            raise UserError(f"data: questions_per_image={per_row} must be at least 1, or null for all")
        self.per_row, self.seed, self.stream, self.shuffle = per_row, seed, stream, shuffle
        # A conversation counts as one question, -1, of its record.
        units = [
            (r, q)
            for r, record in enumerate(records)
            for q in (range(len(record.questions)) if record.conversation is None else [-1])
        ]
        if not units:
            raise UserError("data: no questions are left in a source; check exclude_answers")
        self._record, self._question = np.array(units, dtype=np.int64).T
        self._weights, self._class = self._balance(records, units, balance)
        self._passes: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
        self.num_rows = len(self._rows(0))

    def row(self, passed: int, place: int) -> tuple[int, tuple[int, ...]]:
        """(record, its questions) of a place in a pass; questions are () for a conversation.

        Args:
            passed: number of the pass.
            place: 0 .. num_rows - 1.
        """
        rows = self._passes.get(passed)
        if rows is None:
            rows = self._rows(passed)
            if self.shuffle:
                rows = [rows[i] for i in permutation(len(rows), self.seed, self.stream, passed, 2)]
            while len(self._passes) >= _PASSES_KEPT:
                self._passes.pop(min(self._passes))
            self._passes[passed] = rows
        return rows[place % len(rows)]

    def _balance(
        self, records: Sequence[Record], units: list[tuple[int, int]], balance: str
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Weight of each unit, and the number of its class, by which the draws are spread."""
        if balance == "none" or not (self._question >= 0).any():
            return None, np.zeros(len(units), dtype=np.int64)
        texts = [records[r].questions[q] if q >= 0 else ("", "") for r, q in units]
        if balance == "answer":
            times = Counter(answer for _, answer in texts)
            weights = [1 / times[answer] for _, answer in texts]
        else:
            wording, both = Counter(q for q, _ in texts), Counter(texts)
            different = Counter(q for q, _ in both)
            weights = [wording[q] / different[q] / both[q, a] for q, a in texts]
        numbers = {text: n for n, text in enumerate(sorted(set(texts), key=lambda t: (t[1], t[0])))}
        return np.array(weights), np.array([numbers[text] for text in texts])

    def _rows(self, passed: int) -> list[tuple[int, tuple[int, ...]]]:
        """Rows of a pass, in the order of the records."""
        count = len(self._record)
        noise = hash64(count, self.seed, self.stream, passed, 0) if self.shuffle else np.arange(count, dtype=np.uint64)
        unit, repeat = np.arange(count), np.zeros(count, dtype=np.int64)
        if self._weights is not None:
            comb = np.lexsort((noise, self._class))
            comb = comb[self._question[comb] >= 0]
            offset = uniform(self.seed, self.stream, passed, 1)
            drawn = np.ones(count, dtype=np.int64)  # conversations are not drawn: once each
            drawn[comb] = systematic_counts(self._weights[comb], len(comb), offset)
            unit = np.repeat(unit, drawn)
            repeat = np.arange(len(unit)) - np.repeat(np.cumsum(drawn) - drawn, drawn)
        # By record; a question's second time comes after all first ones, so it falls into another row if there is one.
        unit = unit[np.lexsort((noise[unit], repeat, self._record[unit]))]
        rows: list[tuple[int, tuple[int, ...]]] = []
        starts = np.flatnonzero(np.diff(self._record[unit], prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(unit)], strict=True):
            record, questions = int(self._record[unit[start]]), self._question[unit[start:end]]
            parts = -(-len(questions) // (self.per_row or len(questions)))
            rows += [(record, tuple(p.tolist()) if p[0] >= 0 else ()) for p in np.array_split(questions, parts)]
        return rows
