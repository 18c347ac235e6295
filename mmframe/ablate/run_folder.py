"""The folder of one run in the results: its stages, what was measured on it, and why it failed. No torch."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmframe.ablate.plan import Run
from mmframe.cli.recipe import recipe_hash
from mmframe.cli.run_dir import RunDir, locked, read_json, write_atomically
from mmframe.metrics_file import rows_of

_TAIL = 8192  # bytes of metrics.jsonl that hold the last few lines


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Args:
        stage: That is running.
        done: Optimiser steps of the run so far.
        loss: Last logged.
        tokens_per_s: Last logged.
    """

    stage: str = ""
    done: int = 0
    loss: float | None = None
    tokens_per_s: float | None = None


class RunFolder:
    """Files of a run.

    STAGE/                 as `fit` leaves it (a recipe without stages: here)
    evaluations/HASH.json  what an evaluator measured on the final weights; named by the evaluator's class and arguments
    log.txt                what the run printed, of every attempt
    failed.json            how it ended, if it failed

    Args:
        results: Folder of all results.
        run: Whose.
    """

    def __init__(self, results: Path, run: Run) -> None:
        self.run = run
        self.path = results / "runs" / run.hash
        self.log = self.path / "log.txt"
        self.failure = self.path / "failed.json"
        self.stages = {stage: RunDir(self.path / stage if stage else self.path) for stage in run.configs}

    @property
    def last(self) -> RunDir:
        """The last stage."""
        return list(self.stages.values())[-1]

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other processes from working on this run.

        Raises:
            Busy: one does.
        """
        return locked(self.path / ".sweep.lock", "another sweep has this run; it will be found when it is done")

    def trained(self) -> bool:
        """Whether every stage has come to its end."""
        return all(stage.done.is_file() for stage in self.stages.values())

    def finished(self, evaluators: dict[str, dict[str, Any]]) -> bool:
        """Whether it is trained and every evaluator has been asked about its weights."""
        return self.trained() and all(self.measured(spec) is not None for spec in evaluators.values())

    def measured(self, spec: dict[str, Any]) -> dict[str, float] | None:
        """What an evaluator measured on the final weights; None: it was not asked about these weights."""
        found = read_json(self._evaluation(spec))
        return found["metrics"] if found.get("weights_id") == self.last.weights_id() and found else None

    def held_out(self, spec: dict[str, Any]) -> str | None:
        """Fingerprint of the files that an evaluator measured the final weights on; None: not asked, or not kept."""
        return None if self.measured(spec) is None else read_json(self._evaluation(spec)).get("held_out")

    def write_measured(self, spec: dict[str, Any], metrics: dict[str, float], held_out: str, seconds: float) -> None:
        """Keeps what an evaluator measured, and the fingerprint of the files that it did so on."""
        file = self._evaluation(spec)
        file.parent.mkdir(parents=True, exist_ok=True)
        found = {
            "evaluator": spec,
            "weights_id": self.last.weights_id(),
            "metrics": metrics,
            "held_out": held_out,
            "seconds": round(seconds, 1),
        }
        write_atomically(file, json.dumps(found, indent=1) + "\n")

    def _evaluation(self, spec: dict[str, Any]) -> Path:
        return self.path / "evaluations" / f"{recipe_hash(spec)[:12]}.json"

    def progress(self) -> Progress:
        """Where the run is, by the last lines of its metrics: costs one small read."""
        done, current = 0, ""
        for stage, folder in self.stages.items():
            current = stage
            if not folder.done.is_file():
                break
            done += self.run.steps[stage]
        row = self._last_row(self.stages[current].path / "metrics.jsonl")
        if not self.stages[current].done.is_file():
            done += int(row.get("step", -1)) + 1
        return Progress(current, done, row.get("train/loss"), row.get("train/tokens_per_s"))

    @staticmethod
    def _last_row(file: Path) -> dict[str, Any]:
        if not file.is_file():
            return {}
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _TAIL))
            rows = rows_of(stream.read().decode("utf-8", "replace"))
        merged: dict[str, Any] = {}
        for row in rows:
            merged |= row
        return merged

    def tidy(self) -> None:
        """Deletes what a finished run needs no more: checkpoints, and the weights of all stages but the last."""
        for stage in self.stages.values():
            shutil.rmtree(stage.last.parent, ignore_errors=True)
            if stage is not self.last:
                stage.weights.unlink(missing_ok=True)
