"""Language of a model on fixed texts: what training on pictures has cost it."""

from __future__ import annotations

import math

from components.evaluators.common import read_texts
from mmframe.contracts import Evaluator
from mmframe.data.files import expand
from mmframe.errors import UserError
from mmframe.evaluation import check_language
from mmframe.loading import LoadedModel
from mmframe.registry import register


@register("evaluator")
class TextLoss(Evaluator):
    """Negative log-likelihood and perplexity of fixed texts, without pictures.

    Gives `nll` (nats a token), `perplexity`, `tokens`, and `digest`: the first 48 bits of a SHA-256 over the bits of
    all logits, as a whole number. Two models of equal digests on one machine say the same to the last bit; while the
    text path is frozen it is that of the base LLM.

    Args:
        texts: A JSONL file with a text in each line; the demo's are definitions that no source trains on.
        key: Key of the text in a line.
        count: The first so many texts; null: all.
        rows: Texts of a forward pass.
    """

    toy_args = {"count": 4}

    def __init__(
        self, texts: str = "demo:text/text.jsonl", key: str = "text", count: int | None = 64, rows: int = 8
    ) -> None:
        if rows < 1 or (count is not None and count < 1):
            raise UserError(f"TextLoss: count={count} and rows={rows} must be at least 1")
        self.texts, self.key, self.count, self.rows = texts, key, count, rows

    def metrics(self) -> list[str]:
        return ["nll", "perplexity", "tokens", "digest"]

    def files(self) -> list[str]:
        return expand(self.texts)

    def evaluate(self, model: LoadedModel) -> dict[str, float]:
        texts = list(read_texts(self.texts, self.key, self.count))
        found = check_language(model.net, model.processor, texts, self.rows)
        return {
            "nll": found.nll,
            "perplexity": math.exp(min(found.nll, 700.0)),
            "tokens": found.tokens,
            "digest": int(found.digest[:12], 16),
        }
