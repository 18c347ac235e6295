"""The registry of components: one decorator, unique names, plug-ins by entry point. Does not import torch."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TypeVar

from mmframe.errors import UserError, suggest

KINDS = (
    "backbone",
    "patch_embedder",
    "router",
    "freezing",
    "optim",
    "tokenizer",
    "processor",
    "data",
    "source",
    "objective",
    "adapter",
    "auxiliary",
    "checkpoint",
    "evaluator",
    "metric",
    "callback",
)
PLUGIN_GROUP = "mmframe.plugins"

Class = TypeVar("Class", bound=type)
_classes: dict[str, type] = {}
_discovered = False


def register(kind: str) -> Callable[[Class], Class]:
    """Class decorator: makes the class usable in recipes by its bare name.

    The kind must be written as a string literal: the catalogue reads it from the source without importing it.

    Args:
        kind: One of `KINDS`.

    Raises:
        UserError: If the kind is unknown, or another class already has the name (of any kind).
    """
    if kind not in KINDS:
        raise UserError(f"@register({kind!r}): unknown kind; {suggest(kind, KINDS)}")

    def decorate(cls: Class) -> Class:
        known = _classes.get(cls.__name__)
        if known is not None and place(known) != place(cls):
            raise UserError(
                f"two components are called {cls.__name__!r}: {place(known)} and {place(cls)}; rename one of them"
            )
        cls.component_kind = kind  # type: ignore[attr-defined]
        _classes[cls.__name__] = cls
        return cls

    return decorate


def place(cls: type) -> str:
    """Returns the dotted path of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def get(kind: str, name: str) -> type:
    """Returns the registered class of this kind and bare name.

    Raises:
        UserError: If there is none; the message holds the nearest name and all names of the kind.
    """
    discover()
    cls = _classes.get(name)
    if cls is None or cls.component_kind != kind:  # type: ignore[attr-defined]
        raise UserError(f"{name!r} is not a registered {kind}; {suggest(name, names(kind))}")
    return cls


def names(kind: str | None = None) -> list[str]:
    """Returns the sorted names of the registered classes, of one kind or of all."""
    discover()
    return sorted(n for n, c in _classes.items() if kind is None or c.component_kind == kind)  # type: ignore


def classes(kind: str | None = None) -> list[type]:
    """Returns the registered classes in the order of their names, of one kind or of all."""
    return [_classes[name] for name in names(kind)]


def discover() -> None:
    """Imports everything that registers components: mmframe's own modules and every plug-in.

    Plug-ins are the entry points of the group "mmframe.plugins"; of a package all sub-modules are imported, except
    those with a part of the name that starts with "_". It works once; later calls return at once.
    """
    global _discovered
    if _discovered:
        return
    from mmframe.catalog import own_modules  # here: catalog imports this module

    _discovered = True
    try:
        for name in own_modules():
            importlib.import_module(name)
        for plugin in sorted(entry_points(group=PLUGIN_GROUP), key=lambda e: e.value):
            _import_all(plugin.value.split(":")[0])
    except BaseException:
        _discovered = False  # a later call must meet the same error, not an incomplete registry
        raise


def _import_all(name: str) -> None:
    module = importlib.import_module(name)
    for info in pkgutil.iter_modules(getattr(module, "__path__", []), prefix=name + "."):
        if not info.name.rpartition(".")[2].startswith("_"):
            _import_all(info.name)
