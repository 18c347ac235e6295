"""Plain types read from annotations in the source: enough to refuse what is surely wrong, before any import."""

from __future__ import annotations

import ast
from typing import Any

from mmframe.cli.yamlio import parse_value

_LISTS = {"list", "List", "Sequence", "Iterable", "tuple", "Tuple", "set", "frozenset"}
_DICTS = {"dict", "Dict", "Mapping"}
_STRINGS = {"str", "Path", "PathLike", "_PATH"}


def accepts(annotation: ast.expr | None, value: Any) -> bool | None:
    """Whether a value fits an annotation; None when that cannot be told from the source."""
    if annotation is None:
        return None
    if isinstance(annotation, ast.Constant):
        if annotation.value is None:
            return value is None
        if isinstance(annotation.value, str):
            try:
                return accepts(ast.parse(annotation.value, mode="eval").body, value)
            except SyntaxError:
                return None
        return None
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _any(accepts(annotation.left, value), accepts(annotation.right, value))
    if isinstance(annotation, ast.Subscript):
        return _generic(annotation, value)
    return _plain(_tail(annotation), value)


def choices(annotation: ast.expr | None) -> list[str]:
    """The values of the Literals in an annotation."""
    found: list[str] = []
    for node in ast.walk(annotation) if annotation is not None else ():
        if isinstance(node, ast.Subscript) and _tail(node.value) == "Literal":
            items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            found += [str(item.value) for item in items if isinstance(item, ast.Constant)]
    return found


def is_mapping(annotation: ast.expr | None) -> bool:
    """Whether an annotation is a dictionary, or an optional one."""
    if isinstance(annotation, ast.Subscript):
        name = _tail(annotation.value)
        return name in _DICTS or (name == "Optional" and is_mapping(annotation.slice))
    if isinstance(annotation, ast.BinOp):
        return is_mapping(annotation.left) or is_mapping(annotation.right)
    return False


def class_names(annotation: ast.expr | None) -> set[str]:
    """All plain names in an annotation, e.g. {"Optional", "Tokenizer"}."""
    names: set[str] = set()
    for node in ast.walk(annotation) if annotation is not None else ():
        if isinstance(node, ast.Name | ast.Attribute):
            names.add(_tail(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            names.add(node.value)
    return names


def _tail(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


def _any(*answers: bool | None) -> bool | None:
    return True if True in answers else None if None in answers else False


def _generic(node: ast.Subscript, value: Any) -> bool | None:
    name = _tail(node.value)
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Literal":
        options = [item.value for item in inner if isinstance(item, ast.Constant)]
        return value in options and type(value) in {type(o) for o in options}
    if name == "Optional":
        return value is None or accepts(inner[0], value)
    if name == "Union":
        return _any(*(accepts(item, value) for item in inner))
    return _plain(name, value)


def _plain(name: str, value: Any) -> bool | None:
    if name in ("Any", "object"):
        return True
    if name == "None":
        return value is None
    if name in _LISTS:
        return isinstance(value, list)
    if name in _DICTS:
        return isinstance(value, dict)
    if name in _STRINGS:
        return isinstance(value, str | int | float) and not isinstance(value, bool) if name == "str" else None
    if name not in ("int", "float", "bool"):
        return None
    if isinstance(value, str):
        value = parse_value(value)  # "3" in quotes is read as a number later on, too
    if name == "bool":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, float) and (name == "float" or value.is_integer()))
