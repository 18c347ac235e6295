"""ChartQA's relaxed accuracy: numbers may be off by five percent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmframe.errors import UserError
from mmframe.metrics.base import MeanMetric, Row, texts
from mmframe.registry import register


@register("metric")
class RelaxedAccuracy(MeanMetric):
    """Numbers within a tolerance, texts exactly but for case (Masry et al. 2022, 5.1; Methani et al. 2020).

    As pix2struct's metrics.relaxed_correctness, which everyone uses: "5%" is 0.05, so it is not 5; a target of 0 is
    compared as a text, so "0.0" is wrong; numbers with a comma or a unit are texts; years are numbers like any other,
    so 2019 is right for 2010. Space around the answer does not count. References have `answers`: one text or
    a list; `category` human or augmented gives the two halves, whose mean is published.

    Args:
        tolerance: Largest difference relative to the target.
    """

    name = "relaxed_accuracy"
    headline = "accuracy"
    needs = ("answers",)
    samples = [
        ("10.4", {"answers": "10", "category": "human"}),
        ("5%", {"answers": ["0.05"], "category": "augmented"}),
        ("yes", {"answers": "No", "category": "human"}),
    ]

    def __init__(self, tolerance: float = 0.05) -> None:
        super().__init__()
        if tolerance < 0:
            raise UserError(f"RelaxedAccuracy: tolerance={tolerance} must not be negative")
        self.tolerance = tolerance

    def score(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        answers = texts(reference["answers"], self.name)
        return {"score": float(any(relaxed_match(prediction.strip(), answer, self.tolerance) for answer in answers))}


def relaxed_match(prediction: str, target: str, tolerance: float = 0.05) -> bool:
    """Whether a prediction is near enough to a target."""
    said, wanted = _number(prediction), _number(target)
    if said is None or not wanted:
        return prediction.lower() == target.lower()
    return abs(said - wanted) / abs(wanted) <= tolerance


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
