"""How the next token is chosen.

B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmframe.errors import UserError


@dataclass(frozen=True)
class SamplingParams:
    """How answers are made.

    Args:
        max_new_tokens: Longest answer, tokens.
        temperature: Logits are divided by it; 0 takes the likeliest token.
        top_k: Draw among the k likeliest tokens; 0 among all.
        top_p: Draw among the likeliest tokens that together have this probability.
        repetition_penalty: Positive logits of the prompt's and the answer's tokens are divided by it, negative ones
            multiplied (arXiv 1909.05858, as in transformers). Image slots are no tokens of the vocabulary and do not
            count.
        stop: An answer ends where one of these texts begins; the text is not part of the answer.
        seed: Of the draws. Each row draws on its own, so that a batch gives what its rows give alone.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        for name, holds, rule in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 (greedy) or above"),
            ("top_k", self.top_k >= 0, "0 (off) or above"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0; 1 is off"),
            ("stop", all(stop), "texts that are not empty"),
            ("seed", 0 <= self.seed < 2**63, "0 or above"),
        ):
            if not holds:
                raise UserError(f"sampling: {name}={getattr(self, name)!r} must be {rule}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1


class RowSampler:
    """Chooses the tokens of one row: its own generator, its own memory of what was said.

    Args:
        params: How.
        said: Ids that count as said already: the prompt's.
        vocab_size: V.
        device: Of the logits. Draws with a seed repeat on one device, not from one to another.
    """

    def __init__(self, params: SamplingParams, said: Tensor, vocab_size: int, device: torch.device | str) -> None:
        self.params = params
        self.generator = torch.Generator(device).manual_seed(params.seed)
        self.said_V: Tensor | None = None
        if params.repetition_penalty != 1:
            self.said_V = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self.said_V[said.to(device)] = True

    def __call__(self, logits_V: Tensor) -> int:
        """Chooses, and remembers what was chosen."""
        if self.params.greedy:
            token = int(self._punished(logits_V).argmax())
        else:
            token = int(torch.multinomial(self.chances(logits_V), 1, generator=self.generator))
        if self.said_V is not None:
            self.said_V[token] = True
        return token

    def chances(self, logits_V: Tensor) -> Tensor:
        """Probabilities [V] of the draw: penalty, temperature, top-k, top-p, in this order."""
        p = self.params
        scores_V = self._punished(logits_V)
        scores_V = (scores_V - scores_V.max()) / p.temperature
        if 0 < p.top_k < scores_V.numel():
            scores_V = scores_V.masked_fill(scores_V < scores_V.topk(p.top_k).values[-1], float("-inf"))
        chances_V = scores_V.softmax(-1)
        if p.top_p < 1:
            sorted_V, order = chances_V.sort(descending=True, stable=True)
            before_V = sorted_V.cumsum(-1) - sorted_V  # the likeliest token always stays
            chances_V = chances_V.index_fill(0, order[before_V >= p.top_p], 0.0)
        return chances_V / chances_V.sum()

    def _punished(self, logits_V: Tensor) -> Tensor:
        scores_V, factor = logits_V.float(), self.params.repetition_penalty
        if self.said_V is None:
            return scores_V
        return torch.where(self.said_V, torch.where(scores_V < 0, scores_V * factor, scores_V / factor), scores_V)


def sample(logits_BV: Tensor, samplers: Sequence[RowSampler]) -> list[int]:
    """The next token of each row.

    Args:
        logits_BV: After the last token of each row.
        samplers: One for each row; their state goes on.
    """
    if all(s.params.greedy and s.said_V is None for s in samplers):
        return logits_BV.argmax(-1).tolist()
    return [sampler(logits_V) for logits_V, sampler in zip(logits_BV, samplers, strict=True)]
