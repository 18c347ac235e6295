"""MME: two questions on each picture, by subtask."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmframe.errors import UserError, suggest
from mmframe.metrics.base import Row, TaskMetric, all_right, percent
from mmframe.metrics.yes_no import truth, yes_no_rule
from mmframe.registry import register

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


@register("metric")
class MMEScore(TaskMetric):
    """MME's score: accuracy plus accuracy+ (both questions on a picture right), summed over subtasks (Fu et al. 2023).

    Each subtask has at most 200, perception 2000, cognition 800; `score` is their sum. Code: the eval_tool of
    BradyFU/Awesome-Multimodal-Large-Language-Models. References have `answer` (yes or no), `category` (the subtask) and
    `image` (a name of the picture, unique in its subtask). `incomplete` counts pictures without exactly two answers,
    and subtasks that are missing add nothing: sums of a part of the data are no MME scores.

    Args:
        rule: How yes or no is read: ``prefix`` (official) or ``word``, see mmframe.metrics.yes_no.
    """

    name = "mme_score"
    headline = "score"
    needs = ("answer", "category", "image")
    samples = [
        ("Yes.", {"answer": "Yes", "category": "count", "image": "1.png"}),
        ("No", {"answer": "No", "category": "count", "image": "1.png"}),
        ("yes", {"answer": "No", "category": "OCR", "image": "1.png"}),
        ("maybe", {"answer": "Yes", "category": "code_reasoning", "image": "2.png"}),
    ]
    extracts = True

    def __init__(self, rule: str = "prefix") -> None:
        super().__init__()
        self.rule = yes_no_rule(rule, "MMEScore")

    def score(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        if reference["category"] not in PERCEPTION + COGNITION:
            found = reference["category"]
            raise UserError(f"metric {self.name}: no subtask {found!r}; {suggest(found, PERCEPTION + COGNITION)}")
        chosen = self.rule(prediction)
        image = f"{reference['category']}/{reference['image']}"
        right = chosen == truth(reference["answer"], self.name)
        return {"score": float(right), "chosen": chosen, "unmatched": chosen is None, "image": image}

    def summarise(self, rows: Sequence[Row]) -> dict[str, float]:
        accuracy, plus = percent(row["score"] for row in rows), all_right(rows, "image")
        asked = Counter(row["image"] for row in rows)
        incomplete = sum(count != 2 for count in asked.values())
        return {"score": accuracy + plus, "accuracy": accuracy, "accuracy_plus": plus, "incomplete": incomplete}

    def compute(self) -> dict[str, float]:
        figures = super().compute()
        for part, subtasks in (("perception", PERCEPTION), ("cognition", COGNITION), ("score", PERCEPTION + COGNITION)):
            found = [figures[f"{subtask}/score"] for subtask in subtasks if f"{subtask}/score" in figures]
            figures[part] = math.fsum(found) if found else math.nan
        return figures
