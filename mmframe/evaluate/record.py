"""The record of a result: everything that has to be the same for two scores to be compared."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mmframe.cli.run_dir import read_json, write_atomically
from mmframe.errors import UserError

RESULT, ANSWERS = "result.json", "answers.jsonl"
"""Files of a result folder, RESULTS/MODEL/TASK: the record, and one line for each example."""
FORMAT = 1


@dataclass(frozen=True)
class Result:
    """One model on one task, as result.json holds it.

    Attributes:
        task, about, split: of the task.
        metric: its name and version, e.g. {"name": "anls", "version": "1", "spec": {...}}.
        headline: key of the figure that stands in tables.
        figures: what the metric computes, percentages and `n`, `unmatched` among them.
        matcher: ``rules``, or ``judge`` where a judge scored what rules could not.
        judge: {"model", "served", "endpoint", "prompt_digest", "judged", "failed"} or None, see mmframe.evaluate.judge.
        n: examples scored. `errors`: of them those that could not be asked (wrong, and listed in answers.jsonl).
        unmatched: answers in which no answer was recognised.
        limit: examples asked if not all; such a result stands in no table unless asked for.
        decoding: {"max_new_tokens", "stop", "temperature": 0}.
        max_tiles: image budget; None: no example has a picture.
        prompt_digest, data_fingerprint: of the task.
        model: {"source", "name", "weights": digest, "dtype", "parameters"}.
        code: {"mmframe": version, "revision", "torch"}.
        seconds: time of generation on all machines' clocks, wall; `device`: what it ran on; `ranks`; `batch_size`.
        extra: {"answered_before": n} where a run was continued: `seconds` are then those of the rest alone.
        rows: the lines of answers.jsonl, in the order of the task; in memory alone, not in result.json.
    """

    task: str
    about: str
    split: str
    metric: dict[str, Any]
    headline: str
    figures: dict[str, float]
    matcher: str
    n: int
    unmatched: int
    errors: int
    decoding: dict[str, Any]
    max_tiles: int | None
    prompt_digest: str
    data_fingerprint: str
    model: dict[str, Any]
    code: dict[str, Any]
    judge: dict[str, Any] | None = None
    limit: int | None = None
    seconds: float = 0.0
    device: str = ""
    ranks: int = 1
    batch_size: int = 1
    format: int = FORMAT
    extra: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False, compare=False)

    @property
    def score(self) -> float:
        """The figure that stands in tables."""
        return self.figures[self.headline]

    def write(self, folder: Path) -> None:
        """Writes result.json; a kill leaves the old one or the new one."""
        plain = asdict(replace(self, rows=[]))
        del plain["rows"]
        write_atomically(folder / RESULT, json.dumps(plain, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Result:
        """Reads a result folder.

        Raises:
            UserError: it holds no finished result, or one of a newer format.
        """
        data = read_json(folder / RESULT)
        if not data:
            raise UserError(f"{folder}: no {RESULT}; `mmframe evaluate` writes it when the last answer is scored")
        if data.get("format") != FORMAT:
            raise UserError(f"{folder / RESULT}: is of format {data.get('format')}, this mmframe reads {FORMAT}")
        return cls(**data)


# A line of answers.jsonl: {"id", "prompt", "images": [names], "answer", "finish_reason", "tokens", "reference",
# "score": the metric's row of this example}; in mode likelihood "answer" is the list of [log-likelihood, tokens], with
# "options"; in mode perplexity the negative log-likelihood; {"id", "error"} for an example that could not be asked.
