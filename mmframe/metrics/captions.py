"""What the caption metrics share: words as COCO's evaluation cuts them, and their n-grams."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmframe.errors import UserError
from mmframe.metrics.base import TaskMetric

Gram = tuple[str, ...]
ORDER = 4
"""Longest n-gram."""

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_DROPPED = {"'", '"', "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
"""What COCO's evaluation leaves out. Its list has -LRB- in capitals, so brackets stay, as words."""
_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "--", "—": "--", "…": "..."})
_FUSED = {"cannot": "can not", "gonna": "gon na", "wanna": "wan na", "gotta": "got ta", "gimme": "gim me"}
_FUSED_WORD = re.compile(rf"\b({'|'.join(_FUSED)})\b")
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))(?!\w)")
_ABBREVIATIONS = "mr mrs ms dr st jr sr vs etc prof gen inc ltd corp mt ave sgt capt rev jan feb aug sept oct nov dec"
_TOKEN = re.compile(
    r"n't(?!\w)|'(?:s|m|d|re|ve|ll)(?!\w)"
    rf"|(?<!\w)(?:(?:[a-z]\.)+|(?:{_ABBREVIATIONS.replace(' ', '|')})\.)(?!\w)"
    r"|(?<!\w)[-+](?=\d)\d+(?:[.,]\d+)*"
    r"|\w+(?:(?:[-/]|(?<=\d)[.,:](?=\d)|'(?=[a-z]))\w+)*"  # well-known, 1/2, 12:30, o'clock
    r"|\.{2,}|[?!]+|-+|[^\w\s]"
)


def caption_words(text: str) -> list[str]:
    """Lower-case words of a caption without punctuation, as Stanford's PTBTokenizer and COCO's list leave them.

    The tokenizer itself is a Java program; this follows its rules for what captions are made of. docs/metrics.md says
    how often they differ.
    """
    plain = text.lower().translate(_QUOTES)
    plain = _FUSED_WORD.sub(lambda found: _FUSED[found[0]], plain)
    found: list[str] = _TOKEN.findall(_CLITIC.sub(r" \1", plain))
    return [_BRACKETS.get(token, token) for token in found if token not in _DROPPED and set(token) != {"."}]


def grams(words: Sequence[str]) -> Counter[Gram]:
    """How often each n-gram of up to ORDER words occurs."""
    return Counter(tuple(words[start : start + n]) for n in range(1, ORDER + 1) for start in range(len(words) - n + 1))


class CaptionMetric(TaskMetric):
    """Base of the metrics that compare a caption with several human ones.

    Args:
        tokenised: The texts are words with spaces between them already (by the Java tokenizer, say).
    """

    needs = ("captions",)
    samples = [
        ("a man riding a wave on a surfboard", {"captions": ["A man rides a wave.", "A surfer on a big wave"]}),
        ("two dogs play", {"captions": ["Two dogs are playing with a ball.", "dogs play in the grass"]}),
        ("", {"captions": ["A red bus."]}),
        ("A red bus on a city street", {"captions": ["A red bus on the street.", "The bus isn't moving."]}),
    ]

    def __init__(self, tokenised: bool = False) -> None:
        super().__init__()
        self.tokenised = tokenised

    def words(self, text: str) -> list[str]:
        return str(text).split() if self.tokenised else caption_words(str(text))

    def captions(self, reference: Mapping[str, Any]) -> list[list[str]]:
        """Words of each human caption.

        Raises:
            UserError: there is none, or it is a single text (whose letters would be taken for captions).
        """
        given = reference["captions"]
        if isinstance(given, str) or not given:
            raise UserError(f"metric {self.name}: `captions` of a reference is a list of texts, not {given!r}")
        return [self.words(text) for text in given]
