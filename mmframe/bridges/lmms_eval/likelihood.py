"""How likely continuations are: the prompt runs once, its keys and values are forked for each continuation.

B rows, S scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmframe.batch import Batch, Sample
from mmframe.engine import Engine
from mmframe.errors import UserError
from mmframe.processing.row import Row


@dataclass(frozen=True)
class Scored:
    """A continuation.

    Attributes:
        nll: negative log-likelihood, nats, summed over its tokens; the token that ends an answer is not counted.
        tokens: their number.
        greedy: whether they are the likeliest tokens, one after the other.
    """

    nll: float
    tokens: int
    greedy: bool


@torch.no_grad()
def score_continuations(engine: Engine, prompts: Sequence[Sample], texts: Sequence[Sequence[str]]) -> list[Scored]:
    """Scores texts[i][k] after prompts[i], in order, flat.

    Raises:
        UserError: a continuation without tokens, or one that does not fit into the context.
    """
    rows = [_row(engine, prompt, text) for prompt, group in zip(prompts, texts, strict=True) for text in group]
    of_prompt = [place for place, group in enumerate(texts) for _ in group]
    cache = engine.net.backbone.new_cache(len(prompts), max(map(len, prompts)) + max(map(len, rows)))
    first_BV = engine.prefill(prompts, cache)[of_prompt]
    batch = Batch.collate(rows).to(engine.device)
    every = torch.arange(batch.num_tokens, device=engine.device)
    after_SV = engine.net(batch, logits_at=every, cache=cache.select(of_prompt)).logits
    scored, start = [], 0
    for row, first_V in zip(rows, first_BV, strict=True):
        end = start + len(row)
        logits_SV = torch.cat([first_V[None], after_SV[start : end - 1]]).float()
        ids_S = batch.ids[start:end]
        chosen_S = logits_SV.log_softmax(-1).gather(1, ids_S[:, None])
        greedy = bool((logits_SV.argmax(-1) == ids_S).all())
        scored.append(Scored(-float(chosen_S.double().sum()), len(row), greedy))
        start = end
    return scored


def _row(engine: Engine, prompt: Sample, text: str) -> Sample:
    row = Row(engine.processor, (), None, 1, prompt.key, position=len(prompt))
    row.text(text, special=False, supervised=True)
    if not row.ids:
        raise UserError(f"{prompt.key}: the continuation {text!r} has no tokens")
    total = len(prompt) + len(row.ids)
    if engine.max_context is not None and total > engine.max_context:
        raise UserError(f"{prompt.key}: {total} tokens with the continuation, in a context of {engine.max_context}")
    return row.sample(labelled=False)
