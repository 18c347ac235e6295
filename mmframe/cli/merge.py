"""How recipes are merged: one rule for files, stages and the command line.

- sections (`model`, `trainer`) merge key by key
- a component of the same class merges its init_args; of another class it is replaced, arguments and all
- every other value (number, text, list, dictionary) is replaced as a whole
- `key+` appends to a list
"""

from __future__ import annotations

import copy
from typing import Any

from mmframe.errors import UserError

SECTIONS = ("model", "trainer")
COMPONENT_KEYS = frozenset({"class_path", "init_args", "dict_kwargs"})


def is_component(value: Any) -> bool:
    """Whether a value is written as a component: class_path and init_args, nothing else."""
    return isinstance(value, dict) and bool(value) and value.keys() <= COMPONENT_KEYS


def class_name(value: Any) -> str | None:
    """Class of a component value: `X` and `{class_path: X}` are the same."""
    return value if isinstance(value, str) else value.get("class_path") if isinstance(value, dict) else None


def same_class(one: str | None, other: str | None) -> bool:
    """`Router` is `pkg.Router`; `a.Router` is not `b.Router`."""
    if one is None or other is None or one == other:
        return one == other
    short = "." not in one or "." not in other
    return short and one.rpartition(".")[2] == other.rpartition(".")[2]


def merge_value(old: Any, new: Any) -> Any:
    """One value over another."""
    if is_component(new) and (is_component(old) or isinstance(old, str)):
        name = new.get("class_path")
        if name is not None and not same_class(class_name(old), name):
            return copy.deepcopy(new)
        base: dict[str, Any] = {"class_path": old} if isinstance(old, str) else old
        merged = {**base, **new}
        for part in ("init_args", "dict_kwargs"):
            if part in base or part in new:
                merged[part] = merge_keys(base.get(part) or {}, new.get(part) or {})
        return merged
    if isinstance(new, str) and is_component(old) and same_class(class_name(old), new):
        return {**old, "class_path": new}
    return copy.deepcopy(new)


def merge_keys(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """One mapping of arguments over another; `key+` appends to a list."""
    out = dict(old)
    for key, value in new.items():
        if key.endswith("+"):
            out[key[:-1]] = _append(key[:-1], out.get(key[:-1]), value)
        else:
            out[key] = merge_value(out.get(key), value)
    return out


def merge_config(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """One configuration (model, data, trainer, ...) over another."""
    out = dict(old)
    for key, value in new.items():
        if key in SECTIONS and isinstance(value, dict) and isinstance(old.get(key), dict | None):
            out[key] = merge_keys(out.get(key) or {}, value)
        else:
            out = merge_keys(out, {key: value})
    return out


def _append(key: str, old: Any, new: Any) -> list[Any]:
    if old is not None and not isinstance(old, list):
        raise UserError(f"'{key}+' appends to a list, but '{key}' is {old!r}")
    return [*(old or []), *copy.deepcopy(new if isinstance(new, list) else [new])]


def assign(config: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """The configuration with one key set, as `--dotted=value` on the command line does.

    Inside a component, `router.x` is short for `router.init_args.x`. A component written by its name alone
    becomes `{class_path: name}`.

    Args:
        config: What the key is set in; not changed.
        dotted: Key path, e.g. "model.router.init_args.experts_at" or "trainer.callbacks+".
        value: The new value.
    """
    parts = dotted.split(".")
    if not all(parts):
        raise UserError(f"--{dotted}: not a key path")
    if len(parts) == 1:
        return merge_config(config, {dotted: value})
    head, rest = parts[0], parts[1:]
    if head in SECTIONS:
        section = config.get(head)
        return {**config, head: _assign(section if isinstance(section, dict) else {}, rest, value)}
    return _assign(config, parts, value)


def _assign(holder: dict[str, Any], parts: list[str], value: Any) -> dict[str, Any]:
    key, rest = parts[0], parts[1:]
    if not rest:
        return merge_keys(holder, {key: value})
    inner = holder.get(key)
    if isinstance(inner, str):
        inner = {"class_path": inner}
    if isinstance(inner, list) and rest[0].isdigit():
        return {**holder, key: _assign_item(key, inner, rest, value)}
    inner = inner if isinstance(inner, dict) else {}
    if "class_path" in inner and rest[0] not in COMPONENT_KEYS:
        rest = ["init_args", *rest]
    if rest == ["class_path"]:
        return {**holder, key: merge_value(inner, {"class_path": value})}
    return {**holder, key: _assign(inner, rest, value)}


def _assign_item(key: str, items: list[Any], rest: list[str], value: Any) -> list[Any]:
    index = int(rest[0])
    if index >= len(items):
        raise UserError(f"'{key}.{index}': the list has {len(items)} items")
    changed = _assign({rest[0]: items[index]}, rest, value)[rest[0]]
    return [*items[:index], changed, *items[index + 1 :]]
