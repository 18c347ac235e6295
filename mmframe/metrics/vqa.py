"""VQA's soft accuracy: an answer is right to the extent that annotators gave it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmframe.errors import UserError, suggest
from mmframe.metrics.base import MeanMetric, Row, texts
from mmframe.metrics.vqa_answers import textvqa, vqa_v2
from mmframe.registry import register

RULES = {"vqa_v2": vqa_v2, "textvqa": textvqa}


@register("metric")
class VQAAccuracy(MeanMetric):
    """Soft accuracy over ten human answers, leaving each out in turn (Goyal et al. 2017; Singh et al. 2019).

    The mean, over the annotators, of min(1, others who gave this answer / 3). Code: GT-Vision-Lab/VQA
    vqaEvaluation/vqaEval.py, and mmf's TextVQA evaluator. References have `answers`, a list of ten texts.

    Args:
        rules: Normaliser of the challenge: ``vqa_v2`` or ``textvqa``. Under ``vqa_v2``, as in the official code,
            nothing is normalised where all annotators gave the same text: "Yes." is wrong where all said "yes".
    """

    name = "vqa_accuracy"
    headline = "accuracy"
    needs = ("answers",)
    samples = [
        ("The Cat.", {"answers": ["cat"] * 3 + ["dog"] * 7}),
        ("two", {"answers": ["2"] * 9 + ["3"]}),
        ("", {"answers": ["none"] * 2 + ["0"] * 8}),
    ]

    def __init__(self, rules: str = "vqa_v2") -> None:
        super().__init__()
        if rules not in RULES:
            raise UserError(f"VQAAccuracy: rules={rules!r} is not known; {suggest(rules, RULES)}")
        self.rules = rules

    def score(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        answers = texts(reference["answers"], self.name)
        same = RULES[self.rules]
        if self.rules == "vqa_v2" and len({_trimmed(answer) for answer in answers}) == 1:
            same = _trimmed
        said = same(prediction)
        gave = [same(answer) == said for answer in answers]
        return {"score": math.fsum(min(1.0, (sum(gave) - mine) / 3) for mine in gave) / len(answers)}


def _trimmed(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
