"""Templates of a task's YAML: how the columns of an official file become questions, pictures and answers.

``{column}`` stands for the value of a column. A template that is nothing else keeps the value as it is: a list, a
picture. In all other templates values become text, and an empty cell becomes nothing. More forms:

- ``{answers.*.answer}``, ``{image.path}``, ``{item.0}``: into mappings and lists; ``*`` is each item of a list
- ``{hint?}``: the column may be missing
- ``{options|list}``, ``{file|without(_test)}``: filters, see `FILTERS`; several follow one another
- ``{{`` and ``}}``: braces
"""

from __future__ import annotations

import ast
import json
import re
import string
from collections.abc import Callable, Mapping
from typing import Any

from mmframe.errors import UserError, suggest

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")
_FILTER = re.compile(r"(?:^|\|)(\w+)(?:\((.*?)\))?(?=\||$)")
_EMPTY = (None, "", [], {})


def evaluate(template: Any, row: Mapping[str, Any]) -> Any:
    """The value of a template: a text, a list or a mapping of templates; other values stand for themselves.

    Items of lists and mappings that are empty are left out, so that rows may have fewer options or pictures; an item
    that is a list itself gives its items.

    Raises:
        UserError: a column is missing, or its value is not what a filter takes.
    """
    if isinstance(template, Mapping):
        made = {key: evaluate(each, row) for key, each in template.items()}
        return {key: value for key, value in made.items() if value not in _EMPTY}
    if isinstance(template, list):
        made = [evaluate(each, row) for each in template]
        flat = [item for value in made for item in (value if isinstance(value, list) else [value])]
        return [value for value in flat if value not in _EMPTY]
    if not isinstance(template, str):
        return template
    parts = _parts(template)
    if len(parts) == 1 and parts[0][0] == "" and parts[0][1] is not None:
        return _value(parts[0][1], row)
    return "".join(literal + (as_text(_value(name, row)) if name is not None else "") for literal, name in parts)


def is_empty(template: str, row: Mapping[str, Any]) -> bool:
    """Whether a template has fields, and all of them are empty."""
    names = [name for _, name in _parts(template) if name is not None]
    return bool(names) and all(_value(name, row) in _EMPTY for name in names)


def as_text(value: Any) -> str:
    """A value inside of a longer text; nothing is an empty text."""
    return "" if value is None else str(value)


def _parts(template: str) -> list[tuple[str, str | None]]:
    """(text, expression after it), the last expression None."""
    parts: list[tuple[str, str | None]] = []
    text = ""
    for found in _PIECE.finditer(template):
        piece = found[0]
        if found[1] is not None:
            parts.append((text, found[1]))
            text = ""
        elif piece in "{}":
            raise UserError(f"template {template!r}: a single {piece!r}; a brace of the text itself is written twice")
        else:
            text += piece[0] if piece in ("{{", "}}") else piece
    return [*parts, (text, None)] if text or not parts else parts


def _value(expression: str, row: Mapping[str, Any]) -> Any:
    path, filters = expression.partition("|")[::2]
    name, *rest = path.removesuffix("?").split(".")
    if name in row:
        value = _inside(row[name], rest, expression)
    elif path.endswith("?"):
        value = None
    else:
        raise UserError(f"there is no column {name!r}; {suggest(name, map(str, row))}")
    for each, argument in _filters(filters, expression):
        if value is not None:
            value = FILTERS[each](value, argument)
    return value


def _filters(text: str, expression: str) -> list[tuple[str, str]]:
    """(name, argument) of each filter."""
    found = [(each[1], each[2] or "") for each in _FILTER.finditer(text)]
    for name, _ in found:
        if name not in FILTERS:
            raise UserError(f"template {{{expression}}}: no filter {name!r}; {suggest(name, FILTERS)}")
    if sum(len(each[0]) for each in _FILTER.finditer(text)) != len(text):
        raise UserError(f"template {{{expression}}}: filters are written |NAME or |NAME(ARGUMENT)")
    return found


def _inside(value: Any, path: list[str], expression: str) -> Any:
    for place, key in enumerate(path):
        if value is None:
            return None
        if key == "*" and isinstance(value, list):
            return [_inside(item, path[place + 1 :], expression) for item in value]
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (LookupError, TypeError, ValueError) as error:
            has = f"it has {', '.join(map(str, value))}" if isinstance(value, Mapping) else f"it is {value!r:.80}"
            raise UserError(f"{{{expression}}}: there is no {key!r}; {has}") from error
    return value


# ---- filters: value, argument -> value ------------------------------------------------------------------------------


def as_list(value: Any, _: str = "") -> list[Any]:
    """A list that a cell holds as text, as JSON or Python write it; a text that is no list is a list of itself."""
    if isinstance(value, list):
        return value
    text = str(value).strip()
    if not text.startswith("["):
        return [text] if text else []
    for read in (json.loads, ast.literal_eval):
        try:
            return list(read(text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    raise UserError(f"{text!r:.80} is no list, neither of JSON nor of Python")


def letter(value: Any, _: str = "") -> str:
    """The letter of an option's number, from 0."""
    number = int(value)
    if not 0 <= number < 26:
        raise UserError(f"{value!r} is no number of an option, 0 to 25")
    return string.ascii_uppercase[number]


def number(value: Any, _: str = "") -> int:
    """The number of an option's letter, from 0: of "B" and "(B)" it is 1."""
    plain = str(value).strip(" ().").upper()
    if len(plain) != 1 or plain not in string.ascii_uppercase:
        raise UserError(f"{value!r} is no letter of an option")
    return string.ascii_uppercase.index(plain)


def boxed(value: Any, _: str = "") -> str:
    r"""What the last \boxed{} of a solution holds, as MATH's own code finds it; also `\boxed 5`, and \fbox."""
    text = str(value)
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        raise UserError(f"the solution {text[-60:]!r} has no \\boxed answer")
    rest = text[start:].removeprefix("\\boxed").removeprefix("\\fbox").lstrip()
    if not rest.startswith("{"):
        return rest.split("$")[0].strip()
    depth = 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place]
    raise UserError(f"the solution's {text[start : start + 40]!r} has no closing brace")


def matched(value: Any, pattern: str) -> str:
    """What the first group of a regular expression finds; a text in which it finds nothing is an error."""
    found = re.search(pattern, str(value))
    if found is None:
        raise UserError(f"{value!r:.80} does not match {pattern}")
    return found[1]


def mapped(value: Any, pairs: str) -> str:
    """Another text for a value: `a=b, c=d, e` is b for a, d for c, and e for all else; without e, all else stays."""
    rules = [part.strip().partition("=") for part in pairs.split(",")]
    rest = [name for name, equals, _ in rules if not equals]
    return {name: text for name, equals, text in rules if equals}.get(str(value), rest[0] if rest else str(value))


FILTERS: dict[str, Callable[[Any, str], Any]] = {
    "list": as_list,
    "letter": letter,
    "number": number,
    "boxed": boxed,
    "map": mapped,
    "int": lambda value, _: int(value),
    "text": lambda value, _: str(value),
    "lower": lambda value, _: str(value).lower(),
    "strip": lambda value, _: str(value).strip(),
    "bytes": lambda value, _: len(str(value).encode()),
    "without": lambda value, suffix: str(value).removesuffix(suffix).removeprefix(suffix),
    "spaces": lambda value, mark: str(value).replace(mark, " "),
    "before": lambda value, mark: str(value).partition(mark)[0],
    "after": lambda value, mark: str(value).partition(mark)[2],
    "match": matched,
    "first": lambda value, count: str(value)[: int(count)],
    "pad": lambda value, width: str(value).zfill(int(width)),
    "modulo": lambda value, divisor: int(value) % int(divisor),
    "split": lambda value, mark: [part for part in str(value).split(mark or "\n") if part],
}
"""What ``{column|filter}`` and ``{column|filter(argument)}`` can be."""
