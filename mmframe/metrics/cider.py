"""CIDEr: agreement of a caption with the human ones, in words that tell pictures apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmframe.metrics.base import Row
from mmframe.metrics.captions import ORDER, CaptionMetric, Gram, grams
from mmframe.registry import register

SIGMA = 6.0
"""Of the penalty on lengths, words."""
Vector = dict[Gram, float]


@register("metric")
class CIDEr(CaptionMetric):
    """CIDEr-D of COCO's caption evaluation (Vedantam et al. 2015), times 100 as in tables.

    Cosine of tf-idf vectors of 1- to 4-grams, clipped, with a penalty on the difference in length, averaged over the
    human captions. Document frequencies are those of the captions at hand, so the score of a part of the data is not
    comparable with that of all (of a category, they are the category's), and that of one picture is 0. As
    pycocoevalcap's cider_scorer, which takes the number of 2-grams for the length. References have `captions`.
    """

    name = "cider"
    headline = "cider"

    def score(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        return {"words": self.words(prediction), "captions": self.captions(reference)}

    def summarise(self, rows: Sequence[Row]) -> dict[str, float]:
        if not rows:
            return {"cider": math.nan}
        human = [[grams(words) for words in row["captions"]] for row in rows]
        pictures = Counter(gram for captions in human for gram in set().union(*captions))
        rarity = {gram: math.log(len(rows) / count) for gram, count in pictures.items()}
        unseen = math.log(len(rows))
        scores = []
        for row, captions in zip(rows, human, strict=True):
            said = _Weighted(grams(row["words"]), rarity, unseen)
            agreement = [said.agreement(_Weighted(caption, rarity, unseen)) for caption in captions]
            scores.append(math.fsum(agreement) / len(agreement))
        return {"cider": 100 * 10 * math.fsum(scores) / len(scores)}


class _Weighted:
    """Tf-idf vectors of a caption, one an order of n-grams."""

    def __init__(self, counts: Counter[Gram], rarity: Mapping[Gram, float], unseen: float) -> None:
        self.vectors: list[Vector] = [{} for _ in range(ORDER)]
        for gram, count in counts.items():
            self.vectors[len(gram) - 1][gram] = count * rarity.get(gram, unseen)
        self.norms = [math.sqrt(math.fsum(value * value for value in vector.values())) for vector in self.vectors]
        self.length = sum(count for gram, count in counts.items() if len(gram) == 2)

    def agreement(self, human: _Weighted) -> float:
        """Mean over the orders, from 0 to 1."""
        found = []
        for mine, theirs, norm, other in zip(self.vectors, human.vectors, self.norms, human.norms, strict=True):
            both = math.fsum(min(value, theirs[gram]) * theirs[gram] for gram, value in mine.items() if gram in theirs)
            found.append(both / (norm * other) if norm and other else 0.0)
        return math.fsum(found) / ORDER * math.exp(-((self.length - human.length) ** 2) / (2 * SIGMA**2))
