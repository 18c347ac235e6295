"""ROUGE-L of captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmframe.metrics.base import MeanMetric, Row
from mmframe.metrics.captions import CaptionMetric
from mmframe.registry import register

BETA = 1.2
"""How much more recall counts than precision."""


@register("metric")
class ROUGEL(CaptionMetric, MeanMetric):
    """ROUGE-L of COCO's caption evaluation (Lin 2004), in percent, mean over the captions.

    F-score of the longest common subsequence, beta 1.2, of the best precision and the best recall over the human
    captions, which may be those of two of them: as pycocoevalcap's rouge.py. torchmetrics' ROUGEScore has beta 1
    and takes both of one text, so it is not used. References have `captions`.
    """

    name = "rouge_l"
    headline = "rouge_l"

    def score(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        words, human = self.words(prediction), self.captions(reference)
        common = [_common(words, caption) for caption in human]
        precision = max(common) / max(1, len(words))
        recall = max(same / max(1, len(caption)) for same, caption in zip(common, human, strict=True))
        if not precision or not recall:
            return {"score": 0.0}
        return {"score": (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)}


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = row[:]
        for place, candidate in enumerate(other):
            row[place + 1] = before[place] + 1 if word == candidate else max(before[place + 1], row[place])
    return row[-1]
