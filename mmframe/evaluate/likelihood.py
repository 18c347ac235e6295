"""How likely a model finds texts: options after a prompt, and plain text. Each in a pass of its own, so that no digit
depends on what else is evaluated.

T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmframe.batch import COLUMNS, IGNORE, Batch, Sample
from mmframe.engine import Engine
from mmframe.errors import UserError
from mmframe.kinds import TokenKind
from mmframe.prefix import in_front_of

CHUNK = 512  # tokens whose logits are in memory at once


@dataclass(frozen=True)
class Likelihood:
    """How likely a continuation is.

    Attributes:
        total: log-likelihood in nats, summed over its tokens; the token that would end an answer is not counted, as in
            lm-evaluation-harness.
        tokens: their number.
        greedy: whether they are the likeliest tokens, one after the other.
    """

    total: float
    tokens: int
    greedy: bool


def option_likelihoods(
    engine: Engine, prompts: Sequence[Sample], options: Sequence[Sequence[str]]
) -> list[list[Likelihood]]:
    """How likely each of options[i] is after prompts[i], in one pass.

    A prompt runs once: its options are branches, as in training rows of several questions about a picture, and do not
    see one another. With a ``prefix`` mask, which branches cannot have, it runs once for each option.

    Args:
        engine: Has the model.
        prompts: From `processor.encode_prompt`.
        options: Continuations, as they stand.

    Raises:
        UserError: an option without tokens, or one that does not fit into the context.
    """
    alone = engine.net.backbone.attention == "prefix"
    rows, at, targets, lengths = [], [], [], []
    start = 0
    for prompt, texts in zip(prompts, options, strict=True):
        pieces = [engine.processor.piece_ids(text, special=False) for text in texts]
        for text, piece in zip(texts, pieces, strict=True):
            if not piece:
                raise UserError(f"sample {prompt.key!r}: option {text!r} has no tokens")
            _check_context(engine, prompt.key, len(prompt) + len(piece))
        for group in [[piece] for piece in pieces] if alone else [pieces]:
            place = len(prompt)
            for piece in group:  # a token is predicted in front of it; the first of each at the end of the prompt
                at += [start + len(prompt) - 1, *range(start + place, start + place + len(piece) - 1)]
                place += len(piece)
            rows.append(_continued(prompt, group))
            start += place
        targets += [token for piece in pieces for token in piece]
        lengths += map(len, pieces)
    logs, greedy = _log_likelihoods(engine, rows, at, targets)
    found = [
        Likelihood(float(part.sum()), len(part), bool(likeliest.all()))
        for part, likeliest in zip(logs.split(lengths), greedy.split(lengths), strict=True)
    ]
    each = iter(found)
    return [[next(each) for _ in texts] for texts in options]


def text_likelihood(engine: Engine, text: str, key: str = "") -> tuple[float, int]:
    """Negative log-likelihood of a text in nats, and the number of tokens scored.

    The first token has nothing in front of it and is not scored, unless the template opens with a bos token.

    Raises:
        UserError: fewer than two tokens, or more than the context; nothing is cut.
    """
    sample = engine.processor.encode_text(text, key)
    _check_context(engine, key, len(sample))
    at = (sample.labels != IGNORE).nonzero().flatten()
    if not len(at):
        raise UserError(f"sample {key!r}: a text of {len(sample)} tokens leaves none to score")
    logs, _ = _log_likelihoods(engine, [sample], at.tolist(), sample.labels[at].tolist())
    return -float(logs.sum()), len(logs)


def _check_context(engine: Engine, key: str, tokens: int) -> None:
    if engine.max_context is not None and tokens > engine.max_context:
        raise UserError(f"sample {key!r}: {tokens} tokens, more than the context of {engine.max_context}")


def _continued(prompt: Sample, pieces: Sequence[Sequence[int]]) -> Sample:
    """The prompt with each piece as a branch, whose positions go on from the prompt's end."""
    lengths = [len(piece) for piece in pieces]
    new = sum(lengths)
    added: dict[str, Tensor] = {name: torch.full((new,), -1) for name in ("blocks", "tile_index", "tile_row")}
    added |= {
        "tile_column": torch.full((new,), -1),
        "ids": torch.tensor([token for piece in pieces for token in piece]),
        "kinds": torch.full((new,), int(TokenKind.TEXT)),
        "labels": torch.full((new,), IGNORE),
        "positions": torch.cat([len(prompt) + torch.arange(length) for length in lengths]),
        "docs": torch.zeros(new),
        # a single one is no branch: plain causal attention is enough
        "branches": torch.tensor([k if len(pieces) > 1 else 0 for k, n in enumerate(lengths, 1) for _ in range(n)]),
        "prefix": torch.zeros(new),
    }
    columns = {}
    for name in COLUMNS:
        mine = getattr(prompt, name)
        columns[name] = torch.cat([mine, added[name].to(mine.dtype)])
    answers = torch.arange(len(prompt) + new) >= len(prompt)
    columns["prefix"] = in_front_of(answers, columns["docs"], columns["branches"])
    return replace(prompt, **columns)


@torch.no_grad()
def _log_likelihoods(
    engine: Engine, rows: Sequence[Sample], at: Sequence[int], targets: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Log-likelihood of targets[i] at place at[i] of the batch, float64, and whether it is likeliest; on the host."""
    net, device = engine.net, engine.device
    nowhere = torch.zeros(0, dtype=torch.int64, device=device)
    hidden_TD = net(Batch.collate(rows).to(device), logits_at=nowhere, want_hidden=True).hidden
    found, greedy = [], []
    for first in range(0, len(at), CHUNK):
        places = torch.tensor(at[first : first + CHUNK], device=device)
        wanted = torch.tensor(targets[first : first + CHUNK], device=device)
        logits_TV = net.backbone.head(hidden_TD.index_select(0, places)).float()
        found.append(logits_TV.log_softmax(-1).gather(1, wanted[:, None])[:, 0].double().cpu())
        greedy.append((logits_TV.argmax(-1) == wanted).cpu())
    return torch.cat(found), torch.cat(greedy)
