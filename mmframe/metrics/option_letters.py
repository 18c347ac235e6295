"""Rules that read the chosen option out of a free answer. They never guess: what they cannot read is None."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from mmframe.errors import UserError

# A capital letter alone; before a small word "A" is an article and "I" a pronoun, unless the word goes with a letter
_LETTER = r"(?<![A-Za-z0-9])(?!(?:A|I)[ \t]+(?!(?:is|as|because|since|and|or)\b)[a-z])([A-Z])(?![A-Za-z0-9'’])"
_ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
_STATED = re.compile(
    r"(?:(?i:\b(?:answer|option|choice)(?:\s+is|\s*:))|答案(?:是|为|:)?)\s*(?:(?i:option|choice|letter)\s+)?[\s*(\[]*"
    + _LETTER
)
_LEADING = re.compile(r"[\s*(\[]*([A-Z])\s*(?:[.):\],]|\*\*)")
_SINGLE = re.compile(_LETTER)


def named_options(options: Mapping[str, Any] | Sequence[Any]) -> dict[str, str]:
    """Letter -> text of the option. Of a list, the letters are A, B, C and so on.

    Raises:
        UserError: a name is no capital letter.
    """
    named = options if isinstance(options, Mapping) else dict(zip(string.ascii_uppercase, options, strict=False))
    if wrong := [name for name in named if name not in set(string.ascii_uppercase)]:
        raise UserError(f"options are named by single capital letters, not {wrong[0]!r}")
    if not isinstance(options, Mapping) and len(options) > len(named):
        raise UserError(f"{len(options)} options are more than there are letters")
    return {name: str(text) for name, text in named.items()}


def option_letter(text: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer chooses, or None.

    In this order, the first rule that finds a letter of the options decides:

    1. the answer is one letter, capital or small, with any punctuation: "b", "(B)", "**B**";
    2. it states one: "the answer is (B)", "Option: B"; if it states two, nothing is chosen;
    3. it begins with one and a mark: "B. a dog", "(B) a dog";
    4. one single capital letter of the options stands alone in it: "I'd go for B";
    5. it is the text of an option, or contains that of exactly one and is at most twice as long as all of them.

    4 and 5 are VLMEvalKit's (can_infer) but for the article "A", and for letters far from the end, which it does not
    take; 1 to 3 settle what 4 leaves open.

    Args:
        text: The answer as generated; full-width characters are read as plain ones.
        options: Letter -> text.
    """
    plain = unicodedata.normalize("NFKC", text)
    if (found := _ALONE.fullmatch(plain)) and found[1].upper() in options:
        return found[1].upper()
    stated = {letter for letter in _STATED.findall(plain) if letter in options}
    if stated:
        return stated.pop() if len(stated) == 1 else None
    if (found := _LEADING.match(plain)) and found[1] in options:
        return found[1]
    single = {letter for letter in _SINGLE.findall(plain) if letter in options}
    if len(single) == 1:
        return single.pop()
    return _by_text(plain, options)


def _by_text(answer: str, options: Mapping[str, str]) -> str | None:
    said = answer.lower()
    known = {letter: unicodedata.normalize("NFKC", text).lower() for letter, text in options.items()}
    equal = [letter for letter, text in known.items() if text.strip(" .") == said.strip(" .\n")]
    if len(equal) == 1:
        return equal[0]
    inside = [letter for letter, text in known.items() if text.strip() and text in said]
    short = len(said) <= 2 * sum(len(text) for text in known.values())
    return inside[0] if len(inside) == 1 and short else None
