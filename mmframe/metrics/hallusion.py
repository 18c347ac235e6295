"""HallusionBench: the same question on changed pictures, several questions on one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmframe.metrics.base import Row, TaskMetric, all_right, percent
from mmframe.metrics.yes_no import truth, yes_no_rule
from mmframe.registry import register


@register("metric")
class HallusionBenchScore(TaskMetric):
    """HallusionBench's accuracies by question, by figure and by question over its figures (Guan et al. 2024).

    `aAcc`: questions right; `fAcc`: figures of which all questions are right; `qAcc`: questions that are right on all
    their figures; `score`: the mean of the three, which tables show. As the official utils.py, questions without a
    picture (category VS, figure 0) belong to no figure; there GPT-4 judges free answers, here yes or no is read by a
    rule, as in VLMEvalKit. References have `answer` (yes, no, 1 or 0), `category` (VD, VS), `subcategory`, `set_id`,
    `figure_id`, `question_id`.

    Args:
        rule: How yes or no is read: ``word`` or ``prefix``, see mmframe.metrics.yes_no.
    """

    name = "hallusion_bench_score"
    headline = "score"
    needs = ("answer", "category", "subcategory", "set_id", "figure_id", "question_id")
    samples = [
        (said, {"answer": right, "category": category, "subcategory": "map", "set_id": 0} | ids)
        for said, right, category, ids in (
            ("Yes", 1, "VS", {"figure_id": 0, "question_id": 0}),
            ("no.", "0", "VS", {"figure_id": 1, "question_id": 0}),
            ("Yes", "no", "VS", {"figure_id": 1, "question_id": 1}),
            ("It is", 1, "VD", {"figure_id": 0, "question_id": 0}),
        )
    ]
    extracts = True

    def __init__(self, rule: str = "word") -> None:
        super().__init__()
        self.rule = yes_no_rule(rule, "HallusionBenchScore")

    def score(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        chosen = self.rule(prediction)
        place = "_".join(str(reference[key]) for key in ("category", "subcategory", "set_id"))
        drawn = (str(reference["category"]), str(reference["figure_id"])) != ("VS", "0")
        return {
            "score": float(chosen == truth(reference["answer"], self.name)),
            "chosen": chosen,
            "unmatched": chosen is None,
            "question": f"{place}_{reference['question_id']}",
            "figure": f"{place}_{reference['figure_id']}" if drawn else None,
        }

    def summarise(self, rows: Sequence[Row]) -> dict[str, float]:
        every = percent(row["score"] for row in rows)
        figures = all_right((row for row in rows if row["figure"] is not None), "figure")
        questions = all_right(rows, "question")
        return {"score": (every + figures + questions) / 3, "aAcc": every, "fAcc": figures, "qAcc": questions}
