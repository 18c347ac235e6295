"""The lines of answers.jsonl, read back: by id, and how right each answer was."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmframe.errors import UserError
from mmframe.evaluate.record import ANSWERS

AnswerRow = dict[str, Any]


def read_answers(folder: Path) -> dict[str, AnswerRow]:
    """Rows of a result folder by id, in the order of the file; of an id that stands twice, the later row.

    Raises:
        UserError: no such file, or a line that is no row.
    """
    file = folder / ANSWERS
    if not file.is_file():
        raise UserError(
            f"{folder}: no {ANSWERS} beside the record; without it answers can be neither shown nor compared"
        )
    rows: dict[str, AnswerRow] = {}
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                row = json.loads(line)
                rows[str(row["id"])] = row
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{file}: line {number} is no answer ({type(error).__name__}: {error})") from error
    return rows


def answer_score(row: AnswerRow, headline: str) -> float | None:
    """How right an answer was, 0 to 1; None where the metric scores no single answer (CIDEr, perplexity).

    An example that could not be asked has 0. Of a text that was read (character error rate): 1 without an error.

    Args:
        row: Of answers.jsonl.
        headline: Figure of the result.
    """
    if "error" in row:
        return 0.0
    scored = row.get("score")
    if not isinstance(scored, Mapping):
        return _number(scored)
    if "edits" in scored:
        return float(not scored["edits"])
    return _number(scored.get("score", scored.get(headline)))


def unmatched(row: AnswerRow) -> bool:
    """Whether no answer was recognised in the text."""
    return isinstance(row.get("score"), Mapping) and bool(row["score"].get("unmatched"))


def category(row: AnswerRow) -> str:
    """Category of the reference, "" without one; of several (MM-Vet's capabilities) all, as one text."""
    for part in ("reference", "score"):
        if isinstance(row.get(part), Mapping) and row[part].get("category") is not None:
            found = row[part]["category"]
            return ", ".join(map(str, found)) if isinstance(found, list) else str(found)
    return ""


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
