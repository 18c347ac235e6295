"""OCRBench: is an accepted text part of the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmframe.errors import UserError, suggest
from mmframe.metrics.base import Row, TaskMetric, percent, texts
from mmframe.registry import register

RECOGNITION = tuple(
    f"{what} Recognition"
    for what in ("Regular Text", "Irregular Text", "Artistic Text", "Handwriting", "Digit String", "Non-Semantic Text")
)
FORMULAS = "Handwritten Mathematical Expression Recognition"
CATEGORIES = (*RECOGNITION, "Scene Text-centric VQA", "Doc-oriented VQA", "Key Information Extraction", FORMULAS)


@register("metric")
class OCRBenchScore(TaskMetric):
    """OCRBench's score: answers that contain an accepted text, counted; of 1000 in all (Liu et al. 2024).

    As example.py of Yuliang-Liu/MultimodalOCR: line ends are spaces; capitals do not count, but in formulas they do and
    spaces do not. `accuracy` is the percentage. `text_recognition` sums the first six categories. References have
    `answers` (one text or a list) and `category`.
    """

    name = "ocrbench_score"
    headline = "score"
    needs = ("answers", "category")
    samples = [
        ("It says STOP.", {"answers": ["stop"], "category": CATEGORIES[0]}),
        ("x ^ 2", {"answers": "x^2", "category": FORMULAS}),
        ("12", {"answers": ["13", "14"], "category": CATEGORIES[4]}),
    ]

    def score(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        category = reference["category"]
        if category not in CATEGORIES:
            raise UserError(f"metric {self.name}: no category {category!r}; {suggest(category, CATEGORIES)}")
        answers = texts(reference["answers"], self.name)
        if not all(answer.strip() for answer in answers):
            raise UserError(f"metric {self.name}: an empty accepted answer in {answers} would be part of any answer")
        even = _without_spaces if category == FORMULAS else _lower
        return {"score": float(any(even(answer) in even(prediction) for answer in answers))}

    def summarise(self, rows: Sequence[Row]) -> dict[str, float]:
        return {
            "score": sum(row["score"] for row in rows) if rows else math.nan,
            "accuracy": percent(row["score"] for row in rows),
        }

    def compute(self) -> dict[str, float]:
        figures = super().compute()
        found = [figures[f"{name}/score"] for name in RECOGNITION if f"{name}/score" in figures]
        figures["text_recognition"] = math.fsum(found) if found else math.nan
        return figures


def _lower(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _without_spaces(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")
