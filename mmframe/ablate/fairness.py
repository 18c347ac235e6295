"""Refuses to compare runs that differ in more than what the grid changes. No torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
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
_WAYS = "delete one of the two folders, and the same command trains it anew"


def check_fair(results: Path, runs: Sequence[Run]) -> None:
    """Compares what was recorded while the runs trained.

    - Two runs may differ where their recipes do, and nowhere else: in the complete configurations, with every default,
      an argument whose default has changed between the runs shows as well.
    - Runs with the same data in their recipes must have seen the same data: by its fingerprint, taken in training.

    Raises:
        UserError: one line that names both runs and the keys.
    """
    folders = [folder for folder in (RunFolder(results, run) for run in runs) if folder.trained()]
    for folder in folders:
        _same_configuration(folders[0], folder)
    _same_data(folders)


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
            found = {name: told for name, told in read_json(folder.stages[stage].done).get("data", {}).items()}
            found.pop("plan", None)  # the order: follows from the seed
            first, before = seen.setdefault(_data_key(stage, config), (folder, found))
            strange = [name for name in {**before, **found} if before.get(name) != found.get(name)]
            if strange:
                where = f" in stage {stage}" if stage else ""
                raise UserError(
                    f"{_name(first)} and {_name(folder)} have not seen the same data{where}: {few(strange)} was "
                    f"{before.get(strange[0], 'not there')}, then {found.get(strange[0], 'not there')}; {_WAYS}"
                )


def _data_key(stage: str, config: dict[str, Any]) -> str:
    """What decides which data a stage sees; the seed only orders it."""
    data = dict(config["data"])
    arguments = {key: value for key, value in (data.get("init_args") or {}).items() if key != "seed"}
    model = config["model"]
    return recipe_hash(
        {"stage": stage, "data": {**data, "init_args": arguments}}
        | {key: model.get(key) for key in ("processor", "patch_embedder")}
    )


def _name(folder: RunFolder) -> str:
    return f"run {folder.run.id} ({folder.path})"
