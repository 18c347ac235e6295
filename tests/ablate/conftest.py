"""A grid on paper, and its runs as if they had been trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmframe.ablate.grid import Grid, read_grid
from mmframe.ablate.plan import Run, plan
from mmframe.ablate.run_folder import RunFolder
from mmframe.cli.yamlio import dump

GRID: dict[str, Any] = {
    "base": "toy/dense",
    "seeds": [0, 1, 2],
    "budget": {"samples": 64},
    "axes": {
        "experts": {
            "none": {},
            "ffn": {"model": {"router": {"class_path": "ModalityRouter", "init_args": {"experts_at": {"ffn": "all"}}}}},
        }
    },
    "metrics": ["val/loss"],
}
PARAMETERS = {"total": 180_512, "trainable": 180_512, "active": 131_360}


def answers(questions: list[dict[str, Any]]) -> list[Any]:
    """A survey that knows: 8 rows a step, 400 tokens in them."""
    per_step = {"samples": 8, "tokens": 400}
    known = {"parameters": lambda q: PARAMETERS, "metrics": lambda q: True}
    return [known.get(q["ask"], lambda q: -(-q["amount"] // per_step[q["unit"]]))(q) for q in questions]


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes GRID with keys changed (None: left out); returns the file."""

    def write(name: str = "grid", **keys: Any) -> Path:
        content = {key: value for key, value in {**GRID, **keys}.items() if value is not None}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return file

    return write


@pytest.fixture
def planned(written: Callable[..., Path]) -> Callable[..., tuple[Grid, list[Run]]]:
    def make(preset: str | None = None, **keys: Any) -> tuple[Grid, list[Run]]:
        grid = read_grid(written(**keys), preset)
        return grid, plan(grid, answers)

    return make


def pretend(results: Path, run: Run, loss: float, data: dict[str, str] | None = None, **defaults: Any) -> RunFolder:
    """Leaves what a finished run leaves, with this validation loss."""
    folder = RunFolder(results, run)
    for stage, files in folder.stages.items():
        files.path.mkdir(parents=True, exist_ok=True)
        config = run.configs[stage]
        model = {**config["model"], "optim": {"class_path": "AdamWSchedule", "init_args": {"eps": 1e-8, **defaults}}}
        files.config.write_text(dump({**config, "model": model}))
        steps = run.steps[stage]
        totals = {
            "tokens": 400 * steps,
            "samples": 8 * steps,
            "flops": 1e9,
            "seconds": 61.0,
            "memory/peak_rss_gib": 1.5,
        }
        done = {"steps": steps, "weights_id": f"of {run.id}", "metrics": {}, "totals": totals, "data": data or {}}
        files.done.write_text(json.dumps(done))
        files.meta.write_text(json.dumps({"revision": "abc", "dirty": False, "device": "a machine"}))
        rows = [{"step": n, "train/loss": loss + steps - n, "train/tokens": 400 * (n + 1)} for n in range(steps)]
        rows[-1]["val/loss"] = loss
        (files.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


LOSSES = {"none": [3.0, 3.2, 3.1], "ffn": [2.8, 2.9, 3.0]}


def pretend_all(results: Path, runs: list[Run]) -> None:
    for run in runs:
        pretend(results, run, LOSSES[run.variant.id][run.seed])
