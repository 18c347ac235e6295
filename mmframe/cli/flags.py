"""Flags of the small commands: argparse without its traps. Mistakes are one line with the nearest flag. No torch."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import NoReturn

from mmframe.errors import UserError, nearest

_FLAG = re.compile(r"--?[A-Za-z][^\s=]*(?==|$)")  # neither a negative number nor a sentence that begins with a dash


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would print a page and leave."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.partition(' ')[2]}: {message}; `{self.prog} --help` lists the flags")


def parse_flags(
    command: str, words: list[str], describe: Callable[[argparse.ArgumentParser], None]
) -> argparse.Namespace | None:
    """Reads the words after a command. Flags are written out in full; `--debug` is known everywhere.

    Args:
        command: Name of the command, e.g. "chat".
        words: What follows it.
        describe: Adds the command's flags (and `description`, `epilog`) to the parser.

    Returns:
        The values, or None when help was asked for and printed.

    Raises:
        UserError: an unknown flag, with the nearest one; a missing or a wrong value.
    """
    layout = partial(argparse.RawDescriptionHelpFormatter, max_help_position=32, width=120)
    parser = _Parser(prog=f"mmframe {command}", allow_abbrev=False, add_help=False, formatter_class=layout)
    describe(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    parser.add_argument("--help", "-h", action="store_true", help="this help")
    if "--help" in words or "-h" in words:
        parser.print_help()
        return None
    # before parsing: argparse would tell of a flag that is missing and not of the one that was misspelt
    _check_known(parser, words)
    values, rest = parser.parse_known_args(words)
    if rest:
        parser.error(f"does not know what to do with {rest[0]!r}")
    return values


def _check_known(parser: argparse.ArgumentParser, words: Iterable[str]) -> None:
    known = [flag for action in parser._actions for flag in action.option_strings]
    for word in words:
        if word == "--":
            return
        found = _FLAG.match(word)
        if found and found[0] not in known:
            hint = nearest(found[0], known)
            parser.error(f"unknown flag {found[0]}{'; ' + hint if hint else ''}")


def whole(low: int) -> Callable[[str], int]:
    """Type of a flag that takes a whole number of at least `low`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if number < low:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {low}")
        return number

    return read
