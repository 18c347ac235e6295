"""One page to look through a result: pictures, prompt, answer, reference, score; a file that needs no network."""

from __future__ import annotations

import html
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmframe.evaluate.answer_rows import AnswerRow, answer_score, category, read_answers, unmatched
from mmframe.evaluate.browse_pictures import Thumbnails, example_pictures, shown_pictures
from mmframe.evaluate.record import Result

TEMPLATE = Path(__file__).with_name("browse.html")
STATES = ("wrong", "partly", "right", "unscored", "error")
_TOLD_ELSEWHERE = {"score", "unmatched", "category"}
_REFERENCES = {"answer", "answers", "captions", "text"}
"""Keys of references that are the right answer itself."""


def browse_page(
    folder: Path, limit: int = 1000, side: int = 448, task: str | None = None, data: Path | None = None
) -> tuple[str, list[str]]:
    """The page of a result folder.

    Pictures of wrong answers come first, until `limit` is reached; all examples are there with or without theirs.

    Args:
        folder: RESULTS/MODEL/TASK.
        limit: Pictures in the page.
        side: Longest side of a picture, pixels.
        task, data: Where pictures are found; None: as the record says.

    Returns:
        The HTML, and notes on what is not in it (they stand in the page too).

    Raises:
        UserError: no result there, or broken answers.
    """
    result, answers = Result.read(folder), read_answers(folder)
    rows = [_row(row, result.headline) for row in answers.values()]
    notes: list[str] = []
    thumbnails = Thumbnails(limit, side)
    if any(row.get("images") for row in answers.values()):
        wanted = [key for key, row in answers.items() if row.get("images")]
        found, why = example_pictures(result, wanted, task, data)
        for row in sorted(rows, key=lambda row: STATES.index(row["state"])):
            names = answers[row["id"]].get("images") or ()
            row["images"] = shown_pictures([str(name) for name in names], found, row["id"], why, thumbnails)
        lost = sum(image["picture"] < 0 for row in rows for image in row["images"])
        if why:
            notes.append(f"The task's pictures were not found: {why}. --task and --data say where they are.")
        elif lost:
            more = " --limit allows more." if len(thumbnails.pictures) == limit else ""
            notes.append(f"Pictures not in this page: {lost:,}; in their places it says why.{more}")
    page = _filled(TEMPLATE.read_text(encoding="utf-8"), result, rows, notes, thumbnails)
    return page, notes


def _filled(
    template: str, result: Result, rows: Sequence[Mapping[str, Any]], notes: list[str], thumbnails: Thumbnails
) -> str:
    about = f"{result.about}: {result.n:,} examples, {result.unmatched:,} unmatched, {result.errors:,} not asked"
    if any(row["options"] for row in rows):
        about += ". Bars: an option's share in the probability of all of them; ✓ is the right one"
    shown = {
        "title": f"{result.task} · {result.model.get('name', '?')}",
        "score": f"{result.headline} {result.score:.4g}",
        "about": about,
        "facts": _facts(result),
        "notes": notes,
        "rows": rows,
        "states": STATES,
    }
    parts = {
        "title": html.escape(f"{result.task} - {result.model.get('name', '?')}"),
        "data": _json(shown),
        "pictures": _json(thumbnails.pictures),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)  # once: data may hold such marks too


def _json(value: Any) -> str:
    """JSON inside a page: nothing in it can end the script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _facts(result: Result) -> list[tuple[str, str]]:
    """The record as lines."""
    figures = {key: value for key, value in result.figures.items() if "/" not in key}
    known: dict[str, Any] = {
        "figures": ", ".join(f"{key} {value:.4g}" for key, value in figures.items()),
        "metric": f"{result.metric['name']}, version {result.metric.get('version', '?')}",
        "matcher": result.matcher if result.judge is None else f"{result.matcher}, {result.judge.get('model', '?')}",
        "examples": f"{result.n:,}" + (f" (--limit {result.limit})" if result.limit is not None else ", all"),
        "decoding": ", ".join(f"{key} {value}" for key, value in result.decoding.items()),
        "image budget": "the model's" if result.max_tiles is None else f"{result.max_tiles} tiles",
        "prompt": result.prompt_digest,
        "data": result.data_fingerprint,
        "weights": f"{result.model.get('weights', '?')}, {result.model.get('dtype', '?')}",
        "code": f"mmframe {result.code.get('mmframe', '?')}, revision {result.code.get('revision') or 'unknown'}",
    }
    return list(known.items())


def _row(row: AnswerRow, headline: str) -> dict[str, Any]:
    """What the page knows of an example. All texts stay texts; the page never reads them as HTML."""
    score, answer = answer_score(row, headline), row.get("answer")
    state = "error" if "error" in row else "unscored" if score is None else "right" if score >= 1 else "wrong"
    reference = _mapping(row.get("reference"))
    options = _options(row, reference) if isinstance(answer, list) else []
    hidden = {"category", "tokens", "bytes"} | ({"answer", "options"} if options else set())
    facts = {key: value for key, value in _mapping(row.get("score")).items() if key not in _TOLD_ELSEWHERE | {headline}}
    if row.get("finish_reason") == "length":
        facts["cut off at tokens"] = row.get("tokens")
    return {
        "id": str(row["id"]),
        "prompt": str(row.get("prompt", "")),
        "images": [],
        "answer": f"{answer:.3f} nats" if isinstance(answer, float) else "" if options else str(answer or ""),
        "options": options,
        "reference": [
            ("reference" if key in _REFERENCES else key, _told(value))
            for key, value in reference.items()
            if key not in hidden
        ],
        "score": score,
        "state": "partly" if state == "wrong" and score else state,
        "unmatched": unmatched(row),
        "category": category(row),
        "error": str(row.get("error", "")),
        "facts": [(key, str(value)) for key, value in facts.items() if isinstance(value, str | int | float)],
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _options(row: AnswerRow, reference: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Options with their log-likelihoods, and the share of each in the probability of all of them."""
    sums = [float(pair[0]) if pair[0] is not None else math.nan for pair in row["answer"]]
    texts = row.get("options") or reference.get("options") or []
    finite = [value for value in sums if math.isfinite(value)]
    top = max(finite, default=0.0)
    weights = [math.exp(value - top) if math.isfinite(value) else 0.0 for value in sums]
    made = []
    for number, (value, pair) in enumerate(zip(sums, row["answer"], strict=True)):
        known = math.isfinite(value)
        made.append(
            {
                "text": str(texts[number]) if number < len(texts) else f"option {number}",
                "nats": value if known else None,
                "tokens": pair[1],
                "share": weights[number] / (sum(weights) or 1.0),
                "right": reference.get("answer") == number,
                "chosen": len(finite) == len(sums) and sums.index(top) == number,
            }
        )
    return made


def _told(value: Any) -> str:
    """A reference as a person reads it: equal answers of several people once, with their number."""
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {text}" for key, text in value.items())
    if isinstance(value, list):
        counts = Counter(str(text) for text in value)
        return "\n".join(text if count == 1 else f"{text}  (x {count})" for text, count in counts.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
