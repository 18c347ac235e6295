"""Multiple choice by likelihood: the option that the model finds likeliest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmframe.errors import UserError
from mmframe.metrics.base import Row, TaskMetric, percent
from mmframe.registry import register

FIGURES = ("accuracy", "accuracy_per_token", "accuracy_per_byte")


@register("metric")
class LikelihoodChoice(TaskMetric):
    """The right option has the highest log-likelihood: as a sum, a token, and a byte of its text.

    As lm-evaluation-harness' acc (the sum) and its acc_bytes; its acc_norm divides by characters, which are the bytes
    of plain English. Of equal ones the first wins, as there; where one is not finite, nothing is chosen: the sample is
    wrong and counted in `unmatched`. A prediction is a list of (log-likelihood in nats, tokens), one an option.
    References have `answer` (number of the right option, from 0) and `options` (their texts as the model saw them).
    """

    name = "likelihood_choice"
    headline = "accuracy"
    needs = ("answer", "options")
    samples = [
        ([(-2.0, 1), (-3.0, 3)], {"answer": 0, "options": ["cat", "elephant"]}),
        ([(-5.0, 2), (-4.0, 1)], {"answer": 0, "options": ["hedgehog", "fox"]}),
        ([(math.nan, 1), (-1.0, 1)], {"answer": 1, "options": ["a", "b"]}),
    ]
    extracts = True

    def score(self, prediction: Sequence[tuple[float, int]], reference: Mapping[str, Any]) -> Row:
        options, answer = reference["options"], reference["answer"]
        if len(prediction) != len(options) or not 0 <= answer < len(options):
            raise UserError(
                f"metric {self.name}: {len(prediction)} likelihoods, and option {answer} as the right one, "
                f"for {len(options)} options"
            )
        sums = [float(value) for value, _ in prediction]
        tokens = [max(1, count) for _, count in prediction]
        size = [max(1, len(str(text).encode())) for text in options]
        known = all(math.isfinite(value) for value in sums)
        row: Row = {"unmatched": not known}
        for key, lengths in zip(FIGURES, ([1] * len(sums), tokens, size), strict=True):
            each = [value / length for value, length in zip(sums, lengths, strict=True)]
            row[key] = float(known and each.index(max(each)) == answer)
        return row

    def summarise(self, rows: Sequence[Row]) -> dict[str, float]:
        return {key: percent(row[key] for row in rows) for key in FIGURES}
