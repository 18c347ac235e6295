"""ANLS: how near an answer's characters are to the nearest accepted answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmframe.errors import UserError
from mmframe.metrics.base import MeanMetric, Row, texts
from mmframe.metrics.edit_distance import edit_distance
from mmframe.registry import register


@register("metric")
class ANLS(MeanMetric):
    """Average normalised Levenshtein similarity of DocVQA and InfoVQA (Biten et al. 2019; Mathew et al. 2021).

    As the challenge's evaluation script (rrc.cvc.uab.es) does it: distances are taken after case and runs of space are
    evened out, lengths before that; a similarity below the threshold counts 0, at the threshold it counts (in the
    papers' formula it does not). References have `answers`: one text or a list, the nearest counts.

    Args:
        threshold: Similarity below which an answer counts as wrong.
    """

    name = "anls"
    headline = "anls"
    needs = ("answers",)
    samples = [
        ("helo world", {"answers": ["hello world", "x"]}),
        ("nothing like it", {"answers": "abc"}),
        ("12 May", {"answers": ["12  may"]}),
    ]

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        if not 0 <= threshold <= 1:
            raise UserError(f"ANLS: threshold={threshold} must be from 0 to 1")
        self.threshold = threshold

    def score(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        near = max(similarity(prediction, answer) for answer in texts(reference["answers"], self.name))
        return {"score": near if near >= self.threshold else 0.0}


def similarity(one: str, other: str) -> float:
    """1 - distance / longer length; 1 for two empty texts."""
    length = max(len(one.upper()), len(other.upper()))  # capitals of some letters are longer; the official code has it
    distance = edit_distance(" ".join(one.lower().split()), " ".join(other.lower().split()))
    return 1.0 - distance / length if length else 1.0
