"""The user's mistakes: one line that says what, where and what to do; and did-you-mean. No torch here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user (recipe, command line, data), not of the program.

    The command line prints the message as one line and leaves with exit code 2; `--debug` shows the traceback.
    It derives from Exception alone: parsers catch ValueError and TypeError and would hide it.

    Args:
        message: One line: what is wrong, where, the numbers, what to do.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


def nearest(word: str, options: Iterable[str]) -> str:
    """Returns "did you mean 'x'?" for the option closest to `word`, or "" when nothing is near.

    Args:
        word: What the user wrote.
        options: What would have been accepted.
    """
    by_lower = {str(option).lower(): str(option) for option in options}
    found = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.55)
    return f"did you mean {by_lower[found[0]]!r}?" if found else ""


def suggest(word: str, options: Iterable[str], limit: int = 40) -> str:
    """Returns the did-you-mean text followed by the allowed values, for the end of an error line."""
    names = [str(option) for option in options]
    shown = ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
    hint = nearest(word, names)
    return (hint + " " if hint else "") + (f"allowed: {shown}" if names else "nothing is allowed here")
