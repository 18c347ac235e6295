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

_FILTER = re.compile(r"(\w+)(?:\((.*)\))?")
_EMPTY = (None, "", [], {})


def evaluate(template: Any, row: Mapping[str, Any]) -> Any:
    """The value of a template: a text, a list or a mapping of templates; other values stand for themselves.

    Items of lists and mappings that are empty are left out, so that rows may have fewer options or pictures.

    Raises:
        UserError: a column is missing, or its value is not what a filter takes.
    """
    if isinstance(template, Mapping):
        made = {key: evaluate(each, row) for key, each in template.items()}
        return {key: value for key, value in made.items() if value not in _EMPTY}
    if isinstance(template, list):
        return [value for value in (evaluate(each, row) for each in template) if value not in _EMPTY]
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
    try:
        return [(literal, name) for literal, name, _, _ in string.Formatter().parse(template)]
    except ValueError as error:
        raise UserError(f"template {template!r}: {error}; a brace of the text itself is written twice") from error


def _value(expression: str, row: Mapping[str, Any]) -> Any:
    path, *filters = expression.split("|")
    optional = path.endswith("?")
    name, *rest = path.rstrip("?").split(".")
    if name not in row:
        if not optional:
            raise UserError(f"there is no column {name!r}; {suggest(name, map(str, row))}")
        value = None
    else:
        value = _inside(row[name], rest, expression)
    for each in filters:
        found = _FILTER.fullmatch(each)
        if not found or found[1] not in FILTERS:
            raise UserError(f"template {{{expression}}}: no filter {each!r}; {suggest(each, FILTERS)}")
        if value is not None:
            value = FILTERS[found[1]](value, found[2] or "")
    return value


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
    "modulo": lambda value, divisor: int(value) % int(divisor),
    "split": lambda value, mark: [part for part in str(value).split(mark or "\n") if part],
}
"""What ``{column|filter}`` and ``{column|filter(argument)}`` can be."""
