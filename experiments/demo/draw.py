"""Pictures of the demo's report: learning curves over the stages, and a contact sheet."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402

from mmframe.data.demo import Question  # noqa: E402

INK, RIGHT, WRONG = "#222222", "#1a7f37", "#b42318"
OPEN, YES_NO, LOSS = "#0b6e99", "#c2570c", "#555555"


def draw_curves(path: Path, stages: Sequence[Mapping[str, Any]], ceiling: Mapping[str, float]) -> None:
    """Training loss over time and held-out accuracy after each stage, side by side.

    Args:
        path: PNG to write.
        stages: Rows of the report: `name`, `steps`, `minutes`, `losses` [(step, loss)], `open` and `yes_no` in percent.
        ceiling: Text-only `open` and `yes_no`, percent.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), width_ratios=(1.4, 1))
    start = 0.0
    for index, stage in enumerate(stages):
        minutes = [start + stage["minutes"] * (step + 1) / stage["steps"] for step, _ in stage["losses"]]
        losses = [loss for _, loss in stage["losses"]]
        left.plot(minutes, losses, color=LOSS, lw=0.6, alpha=0.4)
        left.plot(minutes, _smooth(losses), color=LOSS, lw=1.6)
        left.axvspan(start, start + stage["minutes"], color="#f2f2f2" if index % 2 else "#e6edf2", lw=0)
        left.text(
            start + stage["minutes"] / 2,
            1.01,
            _code(stage["name"]),
            fontsize=8,
            color=INK,
            ha="center",
            transform=left.get_xaxis_transform(),
        )
        start += stage["minutes"]
    left.set(xlabel="minutes of training", ylabel="loss of a supervised token (nats)", yscale="log", xlim=(0, start))
    left.set_title("Training loss (s0 minimises another loss)", fontsize=10, pad=18)

    measured = [stage for stage in stages if stage["open"] is not None]
    names = [_code(stage["name"]) for stage in measured]
    for key, colour, label in (("open", OPEN, "open questions"), ("yes_no", YES_NO, "yes / no")):
        right.plot(names, [stage[key] for stage in measured], "o-", color=colour, label=label)
        right.axhline(ceiling[key], color=colour, ls=":", lw=1)
        right.text(len(names) - 1, ceiling[key] + 1, f"best from the text alone: {ceiling[key]:.1f}", fontsize=7,
                   color=colour, ha="right")  # fmt: skip
    right.set(ylim=(0, 102), ylabel="exact match, held-out training pictures (%)")
    right.set_title("Accuracy after each stage", fontsize=10, pad=18)
    right.legend(loc="lower right", frameon=False, fontsize=8)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_contact_sheet(path: Path, rows: Sequence[tuple[Question, str]], columns: int = 6) -> None:
    """Held-out pictures with question, answer and truth; a wrong answer is red."""
    lines = -(-len(rows) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(2.15 * columns, 2.75 * lines), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (question, answer) in zip(axes.flat, rows, strict=False):
        with Image.open(question.image) as image:
            axis.imshow(image.convert("RGBA"), interpolation="nearest")
        is_right = answer == question.answer
        axis.set_title(_wrap(question.question, 30), fontsize=7.5, color=INK, pad=3)
        said = _wrap(answer or "(nothing)", 28)
        truth = "" if is_right else "\ntruth: " + _wrap(question.answer, 22)
        axis.text(0.5, -0.03, said + truth, transform=axis.transAxes, ha="center", va="top", fontsize=8,
                  color=RIGHT if is_right else WRONG)  # fmt: skip
    figure.tight_layout(h_pad=1.6)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _code(name: str) -> str:
    """s1_2_semantic -> s1.2, s2_instruction -> s2."""
    return ".".join(part for part in name.split("_") if part.lstrip("s").isdigit())


def _smooth(values: Sequence[float], width: int = 7) -> list[float]:
    """Running median: single hard batches do not hide the trend."""
    half = width // 2
    return [statistics.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def _wrap(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width)[:3])
