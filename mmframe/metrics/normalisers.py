"""Text normalisers that a task can name: what makes two answers the same."""

from __future__ import annotations

import string
from collections.abc import Callable

from mmframe.errors import UserError, suggest
from mmframe.metrics.vqa_answers import textvqa, vqa_v2

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def as_given(text: str) -> str:
    """Every character counts."""
    return text


def ignore_case(text: str) -> str:
    """Capitals and the space around an answer do not count."""
    return text.strip().lower()


def spaces(text: str) -> str:
    """Runs of white space are one space, none around; capitals count."""
    return " ".join(text.split())


def no_periods(text: str) -> str:
    """As `ignore_case`, and periods do not count anywhere: InternVL's exact match (evaluate_vqa.py)."""
    return ignore_case(text.replace(".", ""))


def no_punctuation(text: str) -> str:
    """As `ignore_case`, and no ASCII punctuation counts: lmms-eval's exact_match."""
    return ignore_case(text.translate(_NO_PUNCTUATION))


NORMALISERS: dict[str, Callable[[str], str]] = {
    f.__name__: f for f in (as_given, ignore_case, spaces, no_periods, no_punctuation, vqa_v2, textvqa)
}


def normaliser(name: str, what: str) -> Callable[[str], str]:
    """The normaliser of this name.

    Args:
        name: A key of `NORMALISERS`.
        what: Who asks, for the message.

    Raises:
        UserError: there is none.
    """
    if name not in NORMALISERS:
        raise UserError(f"{what}: normalise={name!r} is not known; {suggest(name, NORMALISERS)}")
    return NORMALISERS[name]
