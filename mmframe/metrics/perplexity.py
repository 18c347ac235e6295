"""Perplexity out of sums of negative log-likelihoods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmframe.metrics.base import Row, TaskMetric
from mmframe.registry import register


@register("metric")
class Perplexity(TaskMetric):
    """exp of the mean negative log-likelihood of a token, and the bits of a byte of text, over all texts at once.

    torchmetrics' Perplexity takes logits of padded batches and adds in fp32; ours takes the sums that
    mmframe's language checks make and adds exactly. A prediction is the negative log-likelihood of a text, nats.
    References have `tokens` (those that were scored) and may have `bytes` (of the text): without them
    `bits_per_byte`, which alone can be compared between tokenizers, is NaN.
    """

    name = "perplexity"
    headline = "perplexity"
    needs = ("tokens",)
    samples = [(6.0, {"tokens": 3, "bytes": 12}), (1.5, {"tokens": 1, "bytes": 4}), (0.1, {"tokens": 7, "bytes": 30})]
    higher_is_better = False

    def score(self, prediction: float, reference: Mapping[str, Any]) -> Row:
        return {"nll": float(prediction), "tokens": int(reference["tokens"]), "bytes": reference.get("bytes")}

    def summarise(self, rows: Sequence[Row]) -> dict[str, float]:
        total, tokens = math.fsum(row["nll"] for row in rows), sum(row["tokens"] for row in rows)
        nll = total / tokens if tokens else math.nan
        known = [row["bytes"] for row in rows if row["bytes"]]
        bits = total / math.log(2) / sum(known) if known and len(known) == len(rows) else math.nan
        perplexity = math.inf if nll > 700 else math.exp(nll)
        return {"perplexity": perplexity, "nll": nll, "tokens": tokens, "bits_per_byte": bits}
