"""How likely a model finds texts: options after a prompt, and plain text. Each in a pass of its own, so that no digit
depends on what else is evaluated.

T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmframe.batch import COLUMNS, IGNORE, Batch, Sample
from mmframe.engine import Engine
from mmframe.errors import UserError
from mmframe.kinds import TokenKind
from mmframe.prefix import in_front_of

CHUNK = 512  # tokens whose logits are in memory at once


def option_likelihoods(engine: Engine, prompt: Sample, options: Sequence[str]) -> list[tuple[float, int]]:
    """Of each option the sum of its tokens' log-likelihoods after the prompt, in nats, and their number.

    The prompt runs once: options are its branches, as in training rows of several questions about a picture, and do
    not see one another. As in lm-evaluation-harness the token that would end the answer is not counted.

    Args:
        engine: Has the model.
        prompt: From `processor.encode_prompt`.
        options: Continuations, as they stand.

    Raises:
        UserError: an option without tokens, or one that does not fit into the context.
    """
    pieces = [engine.processor.piece_ids(option, special=False) for option in options]
    for option, piece in zip(options, pieces, strict=True):
        if not piece:
            raise UserError(f"sample {prompt.key!r}: option {option!r} has no tokens")
    longest = max((len(piece) for piece in pieces), default=0)
    _check_context(engine, prompt.key, len(prompt) + longest)
    at, targets = [], []  # where a token is predicted; the first of each option at the end of the prompt
    start = len(prompt)
    for piece in pieces:
        at += [len(prompt) - 1, *range(start, start + len(piece) - 1)]
        targets += piece
        start += len(piece)
    logs = _log_likelihoods(engine, _branched(prompt, pieces), at, targets)
    return [(float(part.sum()), len(part)) for part in logs.split([len(piece) for piece in pieces])]


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
    logs = _log_likelihoods(engine, sample, at.tolist(), sample.labels[at].tolist())
    return -float(logs.sum()), len(logs)


def _check_context(engine: Engine, key: str, tokens: int) -> None:
    if engine.max_context is not None and tokens > engine.max_context:
        raise UserError(f"sample {key!r}: {tokens} tokens, more than the context of {engine.max_context}")


def _branched(prompt: Sample, pieces: Sequence[Sequence[int]]) -> Sample:
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
def _log_likelihoods(engine: Engine, sample: Sample, at: Sequence[int], targets: Sequence[int]) -> Tensor:
    """float64 [len(at)], on the host: log-likelihood of targets[i] at sequence index at[i]."""
    net, device = engine.net, engine.device
    nowhere = torch.zeros(0, dtype=torch.int64, device=device)
    hidden_TD = net(Batch.collate([sample]).to(device), logits_at=nowhere, want_hidden=True).hidden
    found = []
    for first in range(0, len(at), CHUNK):
        places = torch.tensor(at[first : first + CHUNK], device=device)
        wanted = torch.tensor(targets[first : first + CHUNK], device=device)
        logs_TV = net.backbone.head(hidden_TD.index_select(0, places)).float().log_softmax(-1)
        found.append(logs_TV.gather(1, wanted[:, None])[:, 0].double().cpu())
    return torch.cat(found)
