"""Character error rate of a reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmframe.metrics.base import Row, TaskMetric, share
from mmframe.metrics.edit_distance import edit_distance
from mmframe.metrics.normalisers import normaliser
from mmframe.registry import register


@register("metric")
class CharacterErrorRate(TaskMetric):
    """Edits that are missing to the right text, as a percentage of its characters, over all texts at once.

    Characters are code points. It exceeds 100 where an answer is longer than the text. torchmetrics' CharErrorRate and
    jiwer.cer of the whole corpus are the same figure. `exact` is the percentage of texts read without an error.
    References have `text`, the right one.

    Args:
        normalise: What is evened out in both texts first, as in ExactMatch.
    """

    name = "character_error_rate"
    headline = "cer"
    needs = ("text",)
    samples = [("he1lo", {"text": "hello"}), ("", {"text": "ab"}), ("a  b", {"text": "a b"})]
    higher_is_better = False

    def __init__(self, normalise: str = "spaces") -> None:
        super().__init__()
        self.normalise = normaliser(normalise, "CharacterErrorRate")

    def score(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        right = self.normalise(str(reference["text"]))
        return {"edits": edit_distance(self.normalise(prediction), right), "characters": len(right)}

    def summarise(self, rows: Sequence[Row]) -> dict[str, float]:
        edits, characters = (sum(row[key] for row in rows) for key in ("edits", "characters"))
        return {"cer": share(edits, characters), "exact": share(sum(not row["edits"] for row in rows), len(rows))}
