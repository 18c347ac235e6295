"""The YAML of a task: found by name or path, laid over what it extends, keys and values checked."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmframe.catalog import of_kind
from mmframe.cli.merge import merge_value
from mmframe.cli.recipe import TASKS, recipe_root
from mmframe.cli.yamlio import load
from mmframe.errors import UserError, suggest
from mmframe.tasks.readers import READERS, check_reader
from mmframe.tasks.task import MODES

DATA_KEYS = ("folder", "get", "hub", "revision", "each", "every", "keep", "choices")
"""Keys of `data` beside the reader's name."""


@dataclass(frozen=True)
class Spec:
    """What a task's YAML says; docs/tasks.md explains the keys.

    Attributes:
        about, split, mode, metric, decoding, max_tiles, judge: as in `Task`.
        table: which of the paper's tables it stands in: general, vqa, captions, language; else offline.
        data: where the files lie and how they are read.
        fields: templates over a row's columns: `id`, `images`, `question`, and what else the prompt speaks of.
        reference: templates over columns and fields: what the metric gets. Empty: the answers are not public.
        prompt: template of what the user says; a line whose fields are all empty is left out.
        options: {form, join, continuation}: how an option is written, what stands between two, and in mode likelihood
            what is scored of each.
        pictures: {one, each, named}: what stands for a picture where there is one, for each of several (`{n}` from 1
            on), ahead of the prompt; and how a text names picture n, where it stands in the text.
        system: system message; None: the model's own.
        shots: {count, match, data, answer}: examples that come before, from other files; see `RowTask`.
        submission: {file, row}: what the benchmark's server takes: a .json or .tsv file, and templates of one row of it
            over columns, fields and `{answer}`, which is what the model said.
    """

    name: str
    about: str
    split: str
    metric: dict[str, Any]
    data: dict[str, Any]
    fields: dict[str, Any]
    prompt: str
    reference: dict[str, Any] = field(default_factory=dict)
    table: str = "offline"
    mode: str = "generate"
    options: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    system: str | None = None
    shots: dict[str, Any] | None = None
    submission: dict[str, Any] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)
    max_tiles: int | None = None
    judge: dict[str, Any] | None = None
    file: str = ""

    @property
    def reader(self) -> tuple[str, dict[str, Any]]:
        """Name and arguments of the reader of `data`."""
        return reader_of(self.data)

    def prompt_facts(self) -> dict[str, Any]:
        """Everything that decides what the model is asked."""
        keys = ("mode", "fields", "prompt", "options", "pictures", "system", "shots")
        return {key: getattr(self, key) for key in keys}


SUBMITTED = (".json", ".tsv")
"""Kinds of files for a benchmark's server."""
TABLES = ("general", "vqa", "captions", "language", "offline")
_PARTS = {
    "options": ("form", "join", "continuation"),
    "pictures": ("one", "each", "named"),
    "shots": ("count", "match", "data", "answer"),
    "decoding": ("max_new_tokens", "stop"),
    "submission": ("file", "row"),
    "metric": ("class_path", "init_args"),
}
_OWN = [each.name for each in fields(Spec) if each.name not in ("name", "file")]


def task_files() -> dict[str, Path]:
    """The shipped tasks by name. A name with a leading "_" is a part of others."""
    root = recipe_root()
    found = sorted((root / TASKS).glob("*.yaml")) if root else []
    return {file.stem: file for file in found}


def task_names() -> list[str]:
    """Names of the shipped tasks."""
    return [name for name in task_files() if not name.startswith("_")]


def read_spec(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> Spec:
    """The spec of a shipped task, by name, or of a YAML file.

    Args:
        name_or_path: "docvqa_val" or "my/task.yaml".
        overrides: Keys of the YAML; mappings are laid over those of the file, other values replace them.

    Raises:
        UserError: there is no such task, or a key or value is wrong; with file, key and the nearest name.
    """
    known = task_files()
    file = Path(name_or_path)
    if name_or_path in known and not name_or_path.startswith("_"):
        file = known[name_or_path]
    elif file.suffix != ".yaml" or not file.is_file():
        raise UserError(
            f"no task {name_or_path!r}: neither a shipped task nor a YAML file; {suggest(name_or_path, task_names())}"
        )
    content = _composed(file, ())
    for key, value in (overrides or {}).items():
        content = lay_over(content, {key: value})
    return _checked(file, content)


def lay_over(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """One YAML over another: mappings key by key, null takes a key away, other values replace.

    Of `data` another reader replaces the old one; a metric of another class replaces its arguments too.
    """
    out = dict(old)
    for key, value in new.items():
        before = out.get(key)
        if key == "data" and isinstance(value, dict) and isinstance(before, dict) and READERS.keys() & value.keys():
            before = {name: each for name, each in before.items() if name not in READERS or name in value}
        if key == "metric":
            out[key] = merge_value(before, value)
        elif value is None:
            out.pop(key, None)
        elif isinstance(value, dict) and isinstance(before, dict):
            out[key] = lay_over(before, value)
        else:
            out[key] = copy.deepcopy(value)
    return out


def reader_of(data: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the one reader that a `data` section names.

    Raises:
        UserError: it names none or two, or a key is unknown.
    """
    names = [key for key in data if key in READERS]
    for key in data:
        if key not in READERS and key not in DATA_KEYS:
            raise UserError(f"data: unknown key {key!r}; {suggest(key, (*DATA_KEYS, *READERS))}")
    if len(names) != 1:
        raise UserError(f"data: names {len(names)} readers, one is needed: {', '.join(READERS)}")
    arguments = data[names[0]] or {}
    check_reader(names[0], arguments)
    return names[0], arguments


def _composed(file: Path, inside: tuple[Path, ...]) -> dict[str, Any]:
    path = file.resolve()
    if path in inside:
        raise UserError(f"{file}: `extends:` goes round in a circle")
    content, places = load(file)
    base = content.pop("extends", None)
    if base is None:
        return content
    beside = file.parent / f"{base}.yaml"
    found = beside if beside.is_file() else task_files().get(str(base))
    if found is None:
        raise UserError(f"{places[('extends',)]}: extends: no task {base!r}; {suggest(str(base), task_files())}")
    return lay_over(_composed(found, (*inside, path)), content)


def _checked(file: Path, content: dict[str, Any]) -> Spec:
    for key in content:
        if key not in _OWN:
            raise UserError(f"{file}: unknown key {key!r}; {suggest(str(key), (*_OWN, 'extends'))}")
    for each in fields(Spec):
        if each.name in ("about", "split", "metric", "data", "fields", "prompt") and each.name not in content:
            raise UserError(f"{file}: {each.name!r} is missing")
    for part, keys in _PARTS.items():
        value = content.get(part) or {}
        if not isinstance(value, dict):
            raise UserError(f"{file}: {part}: a mapping of {', '.join(keys)} is needed, got {value!r}")
        for key in value:
            if key not in keys:
                raise UserError(f"{file}: {part}: unknown key {key!r}; {suggest(str(key), keys)}")
    for key, allowed in (("mode", MODES), ("table", TABLES)):
        if content.get(key, allowed[0]) not in allowed:
            raise UserError(f"{file}: {key}={content[key]!r}; {suggest(str(content[key]), allowed)}")
    submitted = content.get("submission") or {}
    if submitted and (Path(submitted.get("file", "")).suffix not in SUBMITTED or not submitted.get("row")):
        raise UserError(f"{file}: submission: a `file` that ends in {' or '.join(SUBMITTED)} and a `row` are needed")
    try:
        _check_metric(content["metric"])
        reader_of(content["data"])
        if content.get("shots"):
            reader_of(content["shots"]["data"])
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    return Spec(name=file.stem, file=str(file), **content)


def _check_metric(metric: Mapping[str, Any]) -> None:
    known = _metrics()
    name = metric.get("class_path", "")
    if name not in known:
        raise UserError(f"metric: no metric is called {name!r}; {suggest(name, known)}")
    signature = known[name].signature
    for key in metric.get("init_args") or {}:
        if key not in signature.arguments and not signature.open:
            raise UserError(f"metric {name}: no argument {key!r}; {suggest(key, signature.arguments)}")


@lru_cache(maxsize=1)
def _metrics() -> Mapping[str, Any]:
    return of_kind("metric")
