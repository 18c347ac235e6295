"""Static check of a resolved configuration against the catalogue: misspelt names, keys, values. No torch."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from mmframe.catalog import (
    Argument,
    Entry,
    Signature,
    callback_names,
    catalog,
    model_signature,
    of_kind,
    template_names,
    trainer_signature,
)
from mmframe.cli.merge import COMPONENT_KEYS, class_name
from mmframe.cli.recipe import Recipe
from mmframe.cli.safety import read_checkpoints, read_faults
from mmframe.cli.types import accepts, choices, class_names, is_mapping
from mmframe.cli.yamlio import KeyPath
from mmframe.errors import UserError, nearest, suggest
from mmframe.registry import KINDS

TOP_KEYS = (
    *("model", "data", "trainer", "seed_everything", "checkpoint_every", "checkpoints", "faults"),
    *("ckpt_path", "weights_only"),
)
RUN_KEYS = ("return_predictions", "verbose")  # of `validate`, `test` and `predict`, from a saved config.yaml
# set by a link when the components are built, so a recipe does not name them
LINKED = {("patch_embedder", "hidden_size")}


def check(recipe: Recipe, stage: str | None = None, complete: bool = True) -> dict[str, Any]:
    """Checks one resolved stage and returns its configuration.

    Args:
        recipe: To check.
        stage: Of the recipe.
        complete: A recipe that waits for `--start_from` is an error, as it cannot run.

    Raises:
        UserError: For the first mistake: place, key, the bad word, what is allowed, the nearest match.
    """
    config = recipe.resolve(stage)
    waits = waits_for_start(recipe, config, stage)
    _Checker(lambda path: recipe.place(path, stage)).run(config, model_is_full=not waits)
    if waits and complete:
        raise UserError(
            f"recipe {recipe.name}: its model comes from a checkpoint; name one: --start_from=FOLDER, which "
            "`mmframe import` or a finished stage wrote"
        )
    return config


def check_component(path: KeyPath, value: Any, kind: str, place: Callable[[KeyPath], str]) -> None:
    """Checks one component that stands outside of a recipe, such as the evaluators of a grid.

    Raises:
        UserError: as `check`.
    """
    _Checker(place).component(path, value, kind)


def waits_for_start(recipe: Recipe, config: dict[str, Any], stage: str | None = None) -> bool:
    """Whether a recipe takes its model from a checkpoint that is not named yet (`start_from: null`)."""
    model = config.get("model")
    declared = "start_from" in {**recipe.common, **recipe.stages.get(stage or "", {})}
    return declared and recipe.start_from(stage) is None and isinstance(model, dict) and "backbone" not in model


class _Checker:
    """Walks a configuration.

    Args:
        place: Tells where a key path was written.
    """

    def __init__(self, place: Callable[[KeyPath], str]) -> None:
        self.place = place

    def fail(self, path: KeyPath, message: str) -> None:
        raise UserError(f"{self.place(path)}: {'.'.join(path)}: {message}")

    def run(self, config: dict[str, Any], model_is_full: bool = True) -> None:
        for key in config:
            if key not in (*TOP_KEYS, *RUN_KEYS):
                self.fail((key,), f"unknown key {key!r}; {self._hint(key)}")
        for key in ("model", "data"):
            if not config.get(key):
                self.fail((key,), f"the recipe has no '{key}:'")
        for key in ("model", "trainer"):
            if not isinstance(config.get(key) or {}, dict):
                self.fail((key,), f"expected a mapping of keys, got {config[key]!r}")
        self.arguments(("trainer",), config.get("trainer") or {}, trainer_signature(), "the trainer")
        self.arguments(("model",), config["model"], model_signature(), "the model", full=model_is_full)
        self.component(("data",), config["data"], "data")
        self.callbacks(config)
        seed = config.get("seed_everything", 0)
        if not isinstance(seed, int):
            self.fail(("seed_everything",), f"expected an integer, got {seed!r}")
        every = config.get("checkpoint_every", 1)
        if isinstance(every, bool) or not isinstance(every, int) or every < 0:
            self.fail(("checkpoint_every",), f"expected a number of steps (0: only when interrupted), got {every!r}")
        for key, read in (("checkpoints", read_checkpoints), ("faults", read_faults)):
            try:
                read(config)
            except UserError as error:
                raise UserError(f"{self.place((key,))}: {error}") from None

    @staticmethod
    def _hint(key: str) -> str:
        from mmframe.cli.arguments import HIDDEN, SWITCHES, VALUES

        flags = [flag[2:] for flag in (*SWITCHES, *VALUES) if flag not in HIDDEN]
        hint = nearest(key, [*TOP_KEYS, "start_from", *flags])
        if not hint:
            inner = [f"{s}.{a}" for s, sig in (("trainer", trainer_signature()), ("model", model_signature()))
                     for a in sig.arguments]  # fmt: skip
            same = [name for name in inner if name.split(".")[1] == key]
            hint = f"did you mean {same[0]!r}?" if same else nearest(key, inner)
        return f"{hint} allowed: {', '.join(TOP_KEYS)}, start_from".strip()

    def callbacks(self, config: dict[str, Any]) -> None:
        """Callbacks named by their class alone are registered ones or Lightning's."""
        given = (config.get("trainer") or {}).get("callbacks")
        own = of_kind("callback")
        for index, item in enumerate(given if isinstance(given, list) else [given]):
            name = class_name(item)
            path = ("trainer", "callbacks", str(index)) if isinstance(given, list) else ("trainer", "callbacks")
            if name is not None and name.rpartition(".")[2] in own:
                self.component(path, item, "callback")
            elif name is not None and "." not in name and name not in (known := callback_names()):
                self.fail(path, f"{name!r} is not a callback; {suggest(name, [*own, *known])}; others: module.Class")

    def arguments(
        self, path: KeyPath, given: dict[str, Any], signature: Signature, owner: str, kind: str = "", full: bool = True
    ) -> None:
        """Keys, types and missing arguments of one constructor."""
        for key, value in given.items():
            where = (*path, str(key))
            argument = signature.arguments.get(key)
            if argument is None:
                if not signature.open:
                    self.fail(where, f"{owner} has no argument {key!r}; {suggest(str(key), signature.arguments)}")
                continue
            self.value(where, value, argument)
        for argument in signature.arguments.values() if full else ():
            if argument.required and argument.name not in given and (kind, argument.name) not in LINKED:
                self.fail(
                    path, f"{owner} needs the argument {argument.name!r} ({argument.type_text}), and it is missing"
                )

    def value(self, path: KeyPath, value: Any, argument: Argument) -> None:
        kind = component_kind(argument)
        nullable = argument.default is not None and ast.unparse(argument.default) == "None"
        if kind is not None:
            if value is None and (nullable or accepts(argument.annotation, None)):
                return
            if is_mapping(argument.annotation) and isinstance(value, dict):
                for name, item in value.items():
                    self.component((*path, str(name)), item, kind)
                return
            if isinstance(value, str | dict) or value is None:
                self.component(path, value, kind)
                return
        if "TemplateName" in class_names(argument.annotation) and str(value) not in template_names():
            self.fail(path, f"template {value!r} does not exist; {suggest(str(value), template_names())}")
        if accepts(argument.annotation, value) is False and not (value is None and nullable):
            allowed = choices(argument.annotation)
            if allowed:
                self.fail(path, f"{value!r} is not one of the allowed values; {suggest(str(value), allowed)}")
            self.fail(path, f"expected {argument.type_text}, got {value!r} ({type(value).__name__})")

    def component(self, path: KeyPath, value: Any, kind: str) -> None:
        if isinstance(value, str):
            value = {"class_path": value}
        if not isinstance(value, dict):
            self.fail(
                path, f"expected a {kind} (class_path and init_args), got {value!r}; {suggest('', of_kind(kind))}"
            )
        name = value.get("class_path")
        for key in value:
            if key not in COMPONENT_KEYS:
                hint = "arguments stand under init_args" if name else suggest(str(key), sorted(COMPONENT_KEYS))
                self.fail((*path, str(key)), f"unknown key {key!r} beside class_path; {hint}")
        if not isinstance(name, str):
            self.fail(path, f"which {kind}? class_path is missing; {suggest('', of_kind(kind))}")
        entry = self.entry((*path, "class_path"), str(name), kind)
        given = value.get("init_args")
        if not isinstance(given, dict | None):
            self.fail((*path, "init_args"), f"expected a mapping of arguments, got {given!r}")
        if entry is not None:
            self.arguments((*path, "init_args"), given or {}, entry.signature, entry.name, kind)

    def entry(self, path: KeyPath, name: str, kind: str) -> Entry | None:
        """The catalogue's entry; None for a dotted path outside of the catalogue, checked when it is imported."""
        entry = catalog().get(name.rpartition(".")[2])
        if entry is not None and name in (entry.name, entry.path):
            if entry.kind != kind:
                self.fail(path, f"{name} is a {entry.kind}, not a {kind}; {suggest('', of_kind(kind))}")
            return entry
        top, dot, _ = name.partition(".")
        if dot and _exists(top):
            return None
        self.fail(path, f"{name!r} is not a known {kind}; {suggest(name, of_kind(kind))}")
        return None


def _exists(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def component_kind(argument: Argument) -> str | None:
    """The kind of component that an argument takes: by its annotation, else by its name."""
    names = class_names(argument.annotation)
    for entry in catalog().values():
        if entry.name in names or names.intersection(entry.bases) - _COMMON_BASES:
            return entry.kind
    return argument.name if argument.name in KINDS and not names & {"str", "int", "dict", "Any"} else None


_COMMON_BASES = {"Component", "Module", "ABC", "Generic", "Protocol", "object", "LightningDataModule"}
