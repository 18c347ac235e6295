"""POPE: does the model see objects that are not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmframe.metrics.base import Row, TaskMetric, percent, share
from mmframe.metrics.yes_no import truth, yes_no_rule
from mmframe.registry import register


@register("metric")
class POPEScore(TaskMetric):
    """POPE's accuracy, precision, recall, F1 of "yes" and share of "yes" answers (Li et al. 2023).

    The official evaluate.py takes every answer without no or not for a yes; here an answer that cannot be read is
    neither, so that it is a miss where yes was right, and wrong anyway. `category` random, popular or adversarial gives
    the three parts; of some papers POPE is the mean of their F1. References have `answer`.

    Args:
        rule: How yes or no is read: ``word`` or ``prefix``, see mmframe.metrics.yes_no.
    """

    name = "pope_score"
    headline = "f1"
    needs = ("answer",)
    samples = [
        ("Yes, there is.", {"answer": "yes", "category": "random"}),
        ("no", {"answer": "yes", "category": "popular"}),
        ("yes", {"answer": "no", "category": "popular"}),
        ("perhaps", {"answer": "no", "category": "random"}),
    ]
    extracts = True

    def __init__(self, rule: str = "word") -> None:
        super().__init__()
        self.rule = yes_no_rule(rule, "POPEScore")

    def score(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        chosen, right = self.rule(prediction), truth(reference["answer"], self.name)
        return {"score": float(chosen == right), "chosen": chosen, "answer": right, "unmatched": chosen is None}

    def summarise(self, rows: Sequence[Row]) -> dict[str, float]:
        said = sum(row["chosen"] == "yes" for row in rows)
        true = sum(row["answer"] == "yes" for row in rows)
        hits = sum(row["chosen"] == row["answer"] == "yes" for row in rows)
        nothing = 0.0 if rows else float("nan")  # as usual, a share of no answers is 0
        return {
            "f1": share(2 * hits, said + true) if said + true else nothing,
            "precision": share(hits, said) if said else nothing,
            "recall": share(hits, true) if true else nothing,
            "accuracy": percent(row["score"] for row in rows),
            "yes": share(said, len(rows)),
        }
