"""Multiple choice by the letter of the option: once, or under all rotations of the options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmframe.errors import UserError
from mmframe.metrics.base import MeanMetric, Row, all_right, percent
from mmframe.metrics.option_letters import named_options, option_letter
from mmframe.registry import register


@register("metric")
class OptionAccuracy(MeanMetric):
    """The option that the answer chooses is the right one: AI2D, ScienceQA, SEED-Image.

    The letter is read by rules (mmframe.metrics.option_letters); an answer that they cannot read is wrong and counted
    in `unmatched`: no random choice, as MMMU's and lmms-eval's code make it. References have `answer` (a letter) and
    `options` (a mapping of letters to texts, or a list of texts).
    """

    name = "option_accuracy"
    headline = "accuracy"
    needs = ("answer", "options")
    samples = [
        ("(B) dog", {"answer": "B", "options": {"A": "cat", "B": "dog"}}),
        ("The answer is A.", {"answer": "B", "options": ["cat", "dog"]}),
        ("neither", {"answer": "A", "options": ["cat", "dog"]}),
    ]
    extracts = True

    def score(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        options = named_options(reference["options"])
        if reference["answer"] not in options:
            raise UserError(
                f"metric {self.name}: the reference answer {reference['answer']!r} is none of the options "
                f"{', '.join(options)}"
            )
        chosen = option_letter(prediction, options)
        return {"score": float(chosen == reference["answer"]), "chosen": chosen, "unmatched": chosen is None}


@register("metric")
class CircularAccuracy(OptionAccuracy):
    """MMBench's and CCBench's CircularEval: a question counts when it is right under every rotation of its options.

    Liu et al. 2024; VLMEvalKit's mcq_circular_eval. Each rotation is a sample; `group` says which question it belongs
    to (in the official files the index modulo 1,000,000). `vanilla` is the accuracy of all samples, `questions` the
    number of groups, `incomplete` that of groups without as many samples as options. References have `answer`,
    `options` and `group`.
    """

    name = "circular_accuracy"
    needs = ("answer", "options", "group")
    samples = [
        ("B", {"answer": "B", "options": ["cat", "dog"], "group": 1}),
        ("A", {"answer": "A", "options": ["dog", "cat"], "group": 1}),
        ("A", {"answer": "A", "options": ["red", "blue"], "group": 2}),
        ("A", {"answer": "B", "options": ["blue", "red"], "group": 2}),
        ("what?", {"answer": "B", "options": ["1", "2"], "group": 3}),
    ]

    def score(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        row = super().score(prediction, reference)
        return row | {"group": str(reference["group"]), "rotations": len(reference["options"])}

    def summarise(self, rows: Sequence[Row]) -> dict[str, float]:
        there: dict[str, int] = {}
        for row in rows:
            there[row["group"]] = there.get(row["group"], 0) + 1
        wanted = {row["group"]: row["rotations"] for row in rows}
        return {
            "accuracy": all_right(rows, "group"),
            "vanilla": percent(row["score"] for row in rows),
            "questions": len(there),
            "incomplete": sum(there[group] != wanted[group] for group in there),
        }
