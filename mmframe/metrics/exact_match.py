"""Exact match under a stated normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmframe.metrics.base import MeanMetric, Row, texts
from mmframe.metrics.normalisers import normaliser
from mmframe.registry import register


@register("metric")
class ExactMatch(MeanMetric):
    """The answer is one of the accepted ones, after both were normalised.

    References have `answers`: one text or a list.

    Args:
        normalise: ``as_given``, ``ignore_case``, ``spaces``, ``no_periods``, ``no_punctuation``, ``vqa_v2`` or
            ``textvqa``, see mmframe.metrics.normalisers.
    """

    name = "exact_match"
    headline = "accuracy"
    needs = ("answers",)
    samples = [("Red ", {"answers": "red"}), ("blue", {"answers": ["green", "navy"]}), ("", {"answers": "red"})]

    def __init__(self, normalise: str = "ignore_case") -> None:
        super().__init__()
        self.normalise = normaliser(normalise, type(self).__name__)

    def score(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        said = self.normalise(prediction)
        return {"score": float(any(self.normalise(one) == said for one in texts(reference["answers"], self.name)))}


@register("metric")
class GQAAccuracy(ExactMatch):
    """GQA's accuracy: the answer exactly (Hudson and Manning 2019); `category` binary or open gives its two halves.

    The official eval.py compares the strings as they are, and its answers are lower case without a period. That models
    write "Yes." is evened out by whoever converts their answers; InternVL's evaluation drops periods and capitals.

    Args:
        normalise: As in ExactMatch; ``as_given`` is the official code.
    """

    name = "gqa_accuracy"
    samples = [("Yes.", {"answers": "yes", "category": "binary"}), ("a cat", {"answers": "cat", "category": "open"})]

    def __init__(self, normalise: str = "no_periods") -> None:
        super().__init__(normalise=normalise)
