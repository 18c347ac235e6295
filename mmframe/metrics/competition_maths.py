"""MATH: the final answer of a worked solution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmframe.errors import UserError
from mmframe.metrics.base import MeanMetric, Row
from mmframe.metrics.latex_answers import final_answer, same_answer
from mmframe.registry import register


@register("metric")
class MATHAccuracy(MeanMetric):
    """MATH's accuracy: the final answer is the reference's, both normalised (Hendrycks et al. 2021).

    Forms are evened out as by the dataset's own is_equiv; beyond it, plain numbers and fractions are compared by their
    value, so that 0.50 is 1/2 and 1,000 is 1000 (see mmframe.metrics.latex_answers). No algebra: 2x+2 is not 2(x+1).
    `unmatched` counts solutions in which no answer was found. References have `answer`, the final answer in LaTeX or
    the official solution with its box; `category` (subject, level) may be a list.
    """

    name = "math_accuracy"
    headline = "accuracy"
    needs = ("answer",)
    samples = [
        (r"Hence $x=\boxed{\dfrac12}$.", {"answer": r"\frac{1}{2}", "category": ["Algebra", "Level 2"]}),
        ("The final answer is $1,000$.", {"answer": "1000", "category": ["Prealgebra", "Level 1"]}),
        ("We get 3 and then 7", {"answer": r"so it is $\boxed{8}$", "category": ["Algebra", "Level 2"]}),
        ("I do not know", {"answer": "2", "category": ["Algebra", "Level 3"]}),
    ]
    extracts = True

    def score(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        answer = str(reference["answer"])
        right = final_answer(answer) if "\\boxed" in answer or "\\fbox" in answer else answer.strip()
        if not right:
            raise UserError(f"metric {self.name}: the reference {answer!r} holds no answer")
        found = final_answer(prediction)
        same = found is not None and same_answer(found, right)
        return {"score": float(same), "chosen": found, "unmatched": found is None}
