"""BLEU-4 of captions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmframe.metrics.base import Row
from mmframe.metrics.captions import ORDER, CaptionMetric, grams
from mmframe.registry import register


@register("metric")
class BLEU4(CaptionMetric):
    """BLEU of 1- to 4-grams over all captions at once (Papineni et al. 2002), in percent, with BLEU-1 to 3 beside it.

    As pycocoevalcap's bleu_scorer: of human captions equally near in length the shorter counts, and nothing is
    smoothed but by 1e-15. torchmetrics' BLEUScore takes the first of equally near ones, adds in fp32, and gives 0 for
    all where no 4-gram agrees, so it is not used. References have `captions`.
    """

    name = "bleu4"
    headline = "bleu4"

    def score(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        words, human = self.words(prediction), self.captions(reference)
        known: Counter = Counter()
        for caption in human:
            known |= grams(caption)
        right = [0] * ORDER
        for gram, count in (grams(words) & known).items():
            right[len(gram) - 1] += count
        said = [max(0, len(words) - n) for n in range(ORDER)]
        nearest = min((abs(len(caption) - len(words)), len(caption)) for caption in human)[1]
        return {"right": right, "said": said, "length": len(words), "nearest": nearest}

    def summarise(self, rows: Sequence[Row]) -> dict[str, float]:
        if not rows:
            return {f"bleu{n + 1}": math.nan for n in range(ORDER)}
        length, nearest = (sum(row[key] for row in rows) for key in ("length", "nearest"))
        ratio = (length + 1e-15) / (nearest + 1e-9)
        brevity = math.exp(1 - 1 / ratio) if 1 > ratio > 1e-3 else float(ratio >= 1)  # exp(-1000) is 0
        figures, product = {}, 1.0
        for n in range(ORDER):
            right, said = (sum(row[key][n] for row in rows) for key in ("right", "said"))
            product *= (right + 1e-15) / (said + 1e-9)
            figures[f"bleu{n + 1}"] = 100 * brevity * product ** (1 / (n + 1))
        return figures
