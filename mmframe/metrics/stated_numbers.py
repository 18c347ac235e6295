"""Rules that read the one number, or the one list of numbers, out of a free answer. They never guess."""

from __future__ import annotations

import math
import re

# With or without thousands separators; not a part of a word, a fraction, a power, an ordinal, a range or a tuple
_NUMBER = re.compile(
    r"(?<![\w./^,⁄-])(?<!\d )(-?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)"
    r"(?![\w/^⁄]|[.,]?\d| \d|-\d)",
    re.I,
)
_BEHIND_LAST_STATED = re.compile(r".*(?:\banswer(?:\s+is|\s*:)|\\boxed\{)([^\n]*)", re.I | re.S)
_LIST = re.compile(r"\[([^\[\]]*)\]")
_LONGEST = 30
"""Characters; a longer number is read as none."""


def one_number(text: str) -> float | None:
    """The number that an answer gives, or None.

    1. Behind the last "answer is", "answer:" or ``\\boxed{`` one number stands in the line: it;
    2. nothing is stated so, and there is one number in the whole text, perhaps repeated: "There are 14.", "$1,000".

    Two different numbers, fractions, ranges, numbers in words or with a unit's letters right behind them are not read.
    """
    plain = text.replace("−", "-")
    stated = _BEHIND_LAST_STATED.match(plain)
    for where in (*((stated[1],) if stated else ()), plain):
        if re.search(r"\d", where):
            found = {_value(number) for number in _NUMBER.findall(where)}
            return found.pop() if len(found) == 1 else None
    return None


def one_list(text: str) -> list[float] | None:
    """The numbers in the square brackets of an answer that has one pair of them, else None."""
    found = _LIST.findall(text.replace("−", "-"))
    parts = [part.strip() for part in found[0].split(",")] if len(found) == 1 else []
    numbers = [_value(part) for part in parts if _NUMBER.fullmatch(part)]
    values = [number for number in numbers if number is not None]
    return values if parts and len(values) == len(parts) else None


def _value(number: str) -> float | None:
    value = float(number.replace(",", "")) if len(number) <= _LONGEST else math.inf
    return value if math.isfinite(value) else None
