"""Token kinds: what a position holds. Experts are chosen by kind, and by nothing else."""

from __future__ import annotations

from enum import IntEnum


class TokenKind(IntEnum):
    """Kind of one token position, stored as int8.

    TEXT      a word of the vocabulary (also role headers and end-of-turn tokens)
    IMAGE     a slot that the patch embedder fills
    BOUNDARY  a token that marks an image: <img>, </img>, a row or tile separator
    QUERY     a learnable query appended to an image
    PAD       filler; never attended to, never supervised
    """

    TEXT = 0
    IMAGE = 1
    BOUNDARY = 2
    QUERY = 3
    PAD = 4
