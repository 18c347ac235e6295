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


class BadRecord(UserError):
    """A record that cannot be learnt from. It is left out, counted and written down, never replaced.

    Args:
        reason: A few words by which such records are counted: "picture missing", "no answer".
        message: One line: which record, which file, what is wrong.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple:  # it may come out of another process
        return type(self), (self.reason, str(self))


def nearest(word: str, options: Iterable[str]) -> str:
    """Returns "did you mean 'x'?" for the option closest to `word`, or "" when nothing is near.

    Args:
        word: What the user wrote.
        options: What would have been accepted.
    """
    by_lower = {str(option).lower(): str(option) for option in options}
    wanted = str(word).lower()
    found = difflib.get_close_matches(wanted, by_lower, n=1, cutoff=0.55)
    if not found and len(wanted) > 2:
        found = [option for option in by_lower if wanted in option][:1]  # a part of the name, as in "s1_2"
    return f"did you mean {by_lower[found[0]]!r}?" if found else ""


def suggest(word: str, options: Iterable[str], limit: int = 12) -> str:
    """Returns the did-you-mean text and the allowed values, for the end of an error line.

    Args:
        word: What the user wrote; "" for nothing.
        options: What would have been accepted.
        limit: Longer lists are cut, if something is near.
    """
    names = [str(option) for option in options]
    hint = nearest(word, names) if word else ""
    if not names:
        return "nothing is allowed here"
    shown = names[:limit] if hint else names
    more = f", ... ({len(names)} in all)" if len(shown) < len(names) else ""
    return f"{hint + ' ' if hint else ''}allowed: {', '.join(shown)}{more}"
