"""Token kinds: what a position holds. Experts are chosen by kind, and by nothing else."""

from __future__ import annotations

from enum import IntEnum


class TokenKind(IntEnum):
    """Kind of one token position, stored as int8.

    TEXT      a word of the vocabulary (also role headers and end-of-turn tokens)
    IMAGE     what the patch embedder sees at a place of a tile
    BOUNDARY  a token that marks an image: <img>, </img>, a row or tile separator, a class token
    QUERY     a learnable query appended to a tile
    PAD       filler; never attended to, never supervised
    """

    TEXT = 0
    IMAGE = 1
    BOUNDARY = 2
    QUERY = 3
    PAD = 4
