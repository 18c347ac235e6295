"""Refuses to compare runs that differ in more than what the grid changes. No torch."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmframe.ablate.plan import Run
from mmframe.ablate.run_folder import RunFolder
from mmframe.cli.recipe import differing_keys, recipe_hash
from mmframe.cli.run_dir import few, read_json
from mmframe.errors import UserError

# where a run lies, and what the chain sets; and what follows from the seed
_OWN = ("trainer.default_root_dir", "model.init_from", "ckpt_path", "seed_everything", "data.init_args.seed")
_DERIVED = ("plan", "lengths ")
"""Of the fingerprint of data: the order follows from the seed, and both from how records become tokens."""
_WAYS = "delete one of the two folders, and the same command trains it anew"


def check_fair(results: Path, runs: Sequence[Run], evaluators: Mapping[str, dict[str, Any]]) -> None:
    """Compares what was recorded while the runs trained.

    - Two runs may differ where their recipes do, and nowhere else: in the complete configurations, with every default,
      an argument whose default has changed between the runs shows as well.
    - Runs with the same data in their recipes must have seen the same data: by its fingerprint, taken in training.
      Which tokens a record becomes (tokenizer, patch embedder) may be what is compared, and is left out.
    - What an evaluator was asked of them must have been asked about the same held-out files: by their content.

    Raises:
        UserError: one line that names both runs and the keys.
    """
    folders = [folder for folder in (RunFolder(results, run) for run in runs) if folder.trained()]
    for folder in folders:
        _same_configuration(folders[0], folder)
    _same_data(folders)
    _same_held_out(folders, evaluators)


def _same_configuration(one: RunFolder, other: RunFolder) -> None:
    for stage in one.run.configs.keys() & other.run.configs.keys():
        meant = differing_keys(one.run.configs[stage], other.run.configs[stage])
        really = differing_keys(_recorded(one, stage), _recorded(other, stage))
        strange = [key for key in really if not key.startswith(_OWN) and not _covered(key, meant)]
        if strange:
            where = f" in stage {stage}" if stage else ""
            raise UserError(
                f"{_name(one)} and {_name(other)} differ{where} in {few(strange)}, which the grid does not "
                f"change; {_WAYS}"
            )


def _recorded(folder: RunFolder, stage: str) -> dict[str, Any]:
    """The configuration that a stage ran with, every default written out."""
    file = folder.stages[stage].config
    return _read(file, file.stat().st_mtime_ns) if file.is_file() else {}


@functools.cache
def _read(file: Path, changed: int) -> dict[str, Any]:
    """A file as it was when it was changed last; the fast loader: only what it wrote itself is compared."""
    return yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _covered(key: str, meant: list[str]) -> bool:
    """Whether a difference follows from one that is meant: the same key, one above or below it, or its class."""
    owners = [path.removesuffix(".class_path") for path in meant]
    return any(key == owner or key.startswith(f"{owner}.") or owner.startswith(f"{key}.") for owner in owners)


def _same_data(folders: Sequence[RunFolder]) -> None:
    seen: dict[str, tuple[RunFolder, dict[str, str]]] = {}
    for folder in folders:
        for stage, config in folder.run.configs.items():
            told = read_json(folder.stages[stage].done).get("data", {})
            found = {name: what for name, what in told.items() if not name.startswith(_DERIVED)}
            first, before = seen.setdefault(_data_key(stage, config), (folder, found))
            strange = [name for name in {**before, **found} if before.get(name) != found.get(name)]
            if strange:
                where = f" in stage {stage}" if stage else ""
                raise UserError(
                    f"{_name(first)} and {_name(folder)} have not seen the same data{where}: {few(strange)} was "
                    f"{before.get(strange[0], 'not there')}, then {found.get(strange[0], 'not there')}; {_WAYS}"
                )


def _same_held_out(folders: Sequence[RunFolder], evaluators: Mapping[str, dict[str, Any]]) -> None:
    for name, spec in evaluators.items():
        asked = [(folder, digest) for folder in folders if (digest := folder.held_out(spec)) is not None]
        for folder, digest in asked:
            if digest != asked[0][1]:
                raise UserError(
                    f"evaluator {name!r} has not measured {_name(asked[0][0])} and {_name(folder)} on the same files: "
                    f"their content was {asked[0][1]}, then {digest}; {_WAYS}"
                )


def _data_key(stage: str, config: dict[str, Any]) -> str:
    """What decides which data a stage sees; the seed only orders it."""
    data = dict(config["data"])
    arguments = {key: value for key, value in (data.get("init_args") or {}).items() if key != "seed"}
    return recipe_hash({"stage": stage, "data": {**data, "init_args": arguments}})


def _name(folder: RunFolder) -> str:
    return f"run {folder.run.id} ({folder.path})"
