"""Rules that read yes or no out of an answer. Neither guesses: what they cannot read is None."""

from __future__ import annotations

import re
from collections.abc import Callable

from mmframe.errors import UserError, suggest


def word(text: str) -> str | None:
    """The one of the words yes and no that occurs; both or none: None. As VLMEvalKit's YOrN_Extraction."""
    found = set(re.findall(r"[^\W_]+", text.lower())) & {"yes", "no"}
    return found.pop() if len(found) == 1 else None


def prefix(text: str) -> str | None:
    """The one that the first four characters hold, yes first, as MME's calculation.py: "not" and "know" are no."""
    start = text.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


RULES: dict[str, Callable[[str], str | None]] = {"word": word, "prefix": prefix}


def yes_no_rule(name: str, what: str) -> Callable[[str], str | None]:
    """The rule of this name.

    Raises:
        UserError: there is none.
    """
    if name not in RULES:
        raise UserError(f"{what}: rule={name!r} is not known; {suggest(name, RULES)}")
    return RULES[name]


def truth(answer: object, what: str) -> str:
    """A reference's answer as yes or no; data files have "Yes", "no.", 1 or "0".

    Raises:
        UserError: it is something else.
    """
    plain = str(answer).strip().lower().rstrip(".")
    known = {"yes": "yes", "no": "no", "1": "yes", "0": "no", "true": "yes", "false": "no"}
    if plain not in known:
        raise UserError(f"metric {what}: the reference answer {answer!r} is neither yes nor no")
    return known[plain]
