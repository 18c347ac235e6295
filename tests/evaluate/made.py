"""Result folders as `mmframe evaluate` leaves them, made without a model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmframe.evaluate.record import ANSWERS, Result

MONO = {
    "mmbench_test_en": ("circular_accuracy", 65.5),
    "mmvet": ("mmvet", 40.1),
    "mmmu_val": ("option_accuracy", 33.7),
    "mme": ("mme_score", 1875.0),
    "mathvista_testmini": ("mathvista", 45.7),
    "seed_image": ("option_accuracy", 67.4),
    "ocrbench": ("ocrbench_score", 767.0),
    "hallusionbench": ("hallusion_bench_score", 34.8),
    "ccbench_dev": ("circular_accuracy", 66.3),
    "textvqa_val": ("vqa_accuracy", 72.6),
    "scienceqa_img_test": ("option_accuracy", 93.6),
    "gqa_testdev": ("gqa_accuracy", 59.5),
    "docvqa_test": ("anls", 80.0),
    "ai2d_test": ("option_accuracy", 68.6),
    "chartqa_test": ("relaxed_accuracy", 73.7),
    "infovqa_test": ("anls", 43.0),
}
"""Mono-InternVL-2B's published scores, as if they had been measured here."""
JUDGED = ("mmvet", "mathvista_testmini")


def result(task: str, metric: str = "exact_match", score: float = 50.0, **changes: Any) -> Result:
    """A record; `model` and `code` in `changes` are laid over the usual ones. A metric may have its version: anls@2."""
    split = task.split("_")[1] if "_" in task else "test"
    name, _, version = metric.partition("@")
    keys: dict[str, Any] = dict(
        task=task,
        about=f"{task}, made by hand",
        split="test" if split in ("image", "img") else split,
        metric={"name": name, "version": version or "1", "spec": {"class_path": name}},
        headline="score",
        figures={"score": score, "n": 200.0},
        matcher="rules",
        n=200,
        unmatched=0,
        errors=0,
        decoding={"max_new_tokens": 32, "stop": [], "temperature": 0},
        max_tiles=None,
        prompt_digest="p1",
        data_fingerprint=f"data of {task}",
    )
    model = {"source": "m", "name": "ours", "weights": "w1", "dtype": "bf16", "parameters": 9} | changes.pop(
        "model", {}
    )
    code = {"mmframe": "0.1.0", "revision": "abc", "torch": "2.8"} | changes.pop("code", {})
    return Result(**(keys | changes), model=model, code=code)


def write(root: Path, made: Result, answers: Iterable[Mapping[str, Any]] = (), folder: str | None = None) -> Path:
    """Writes RESULTS/MODEL/TASK; returns it."""
    where = root / (folder or made.model["name"]) / made.task
    where.mkdir(parents=True, exist_ok=True)
    (where / ANSWERS).write_text("".join(json.dumps(row) + "\n" for row in answers), encoding="utf-8")
    made.write(where)
    return where


def mono(root: Path, leave_out: Iterable[str] = (), **changes: Any) -> Path:
    """All sixteen of MONO; returns the folder of the model."""
    for task, (metric, score) in MONO.items():
        if task not in leave_out:
            judge = {"model": "gpt", "endpoint": "e", "prompt_digest": "j", "judged": 5, "failed": 0}
            how = {"matcher": "judge", "judge": judge} if task in JUDGED else {}
            write(root, result(task, metric, score, **(how | changes)))
    return root / "ours"


def answer(key: str, score: Any = 1.0, **changes: Any) -> dict[str, Any]:
    """A line of answers.jsonl."""
    row = {
        "id": key,
        "prompt": "What?",
        "images": [f"{key}.png"],
        "answer": "yes",
        "finish_reason": "stop",
        "tokens": 2,
    }
    row |= {"reference": {"answers": ["yes"]}, "score": score if isinstance(score, dict) else {"score": score}}
    return row | changes
