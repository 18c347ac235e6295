"""`mmframe diff A B`: the keys in which two recipes, runs or checkpoints differ. torch only to read a .ckpt."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import yaml

from mmframe.cli.recipe import differing_keys, load_recipe
from mmframe.cli.run_dir import read_json
from mmframe.cli.run_state import chain_stages
from mmframe.cli.yamlio import RecipeLoader
from mmframe.errors import UserError

USAGE = """usage: mmframe diff A B
A and B are each one of
  a run directory, of a stage or of a whole recipe      a recipe: NAME, a file, NAME@STAGE for one stage
  weights.safetensors of a run                          a checkpoint: FILE.ckpt
Of runs and what they wrote, seed, code revision and versions are compared too. Only keys that differ are shown. Exit
code 0 when nothing differs, else 1."""

MISSING = object()
FACTS = ("seed", "revision", "dirty", "versions")


def main(words: list[str]) -> int:
    """Runs `mmframe diff A B`."""
    if len(words) != 2 or "--help" in words or "-h" in words:
        print(USAGE)
        return 0 if "--help" in words or "-h" in words else 2
    one, other = (described(word) for word in words)
    keys = differing_keys(one, other)
    for key in keys:
        print(f"{key}: {_show(_at(one, key))} -> {_show(_at(other, key))}")
    return 1 if keys else 0


def described(word: str) -> dict[str, Any]:
    """A run, what it wrote, or a recipe as one tree.

    Raises:
        UserError: none of these.
    """
    path = Path(word)
    if path.is_dir() and not (path / "config.yaml").is_file():
        stages = {name: path / name for name in chain_stages(path)}
        begun = {name: folder for name, folder in stages.items() if (folder / "config.yaml").is_file()}
        if not begun:
            raise UserError(f"diff: {path} holds no run; `mmframe runs` lists those in ./runs")
        return {name: _run(folder) for name, folder in begun.items()}
    if path.is_dir():
        return _run(path)
    if path.is_file() and path.suffix in (".safetensors", ".ckpt"):
        return _written_by_a_run(path)
    name, _, stage = word.partition("@")
    recipe = load_recipe([name])
    if stage:
        return recipe.resolve(stage)
    return {stage: recipe.resolve(stage) for stage in recipe.stages} if recipe.stages else recipe.resolve()


def _run(folder: Path) -> dict[str, Any]:
    """A stage's run. Where its own folder stands in its configuration is no difference."""
    meta = read_json(folder / "meta.json")
    return _tree((folder / "config.yaml").read_text(encoding="utf-8"), meta, folder / "config.yaml")


def _written_by_a_run(file: Path) -> dict[str, Any]:
    """What weights or a checkpoint say of the run that wrote them."""
    if file.suffix == ".safetensors":
        from mmframe.weights import open_weights

        record = open_weights(file, "diff")[1].get("run") or {}
    else:
        import torch

        try:
            record = torch.load(file, map_location="meta", mmap=True, weights_only=True).get("mmframe") or {}
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            raise UserError(f"diff: {file} cannot be read as a checkpoint ({type(error).__name__})") from error
    if not record.get("config"):
        raise UserError(f"diff: {file} does not say which run wrote it; compare run directories or recipes")
    return _tree(record["config"], record, file)


def _tree(config: str, facts: dict[str, Any], where: Path) -> dict[str, Any]:
    tree = yaml.load(config, RecipeLoader)
    if not isinstance(tree, dict):
        raise UserError(f"{where}: is no configuration")
    if isinstance(tree.get("trainer"), dict):
        tree["trainer"].pop("default_root_dir", None)
    return {**tree, "run": {key: facts.get(key) for key in FACTS}}


def _at(tree: Any, path: str) -> Any:
    """Value at a dotted path; a key may itself hold dots, so the longest that fits is taken."""
    if not path:
        return tree
    if not isinstance(tree, dict):
        return MISSING
    fitting = [key for key in tree if path == key or path.startswith(f"{key}.")]
    if not fitting:
        return MISSING
    key = max(fitting, key=len)
    return _at(tree[key], path[len(key) + 1 :])


def _show(value: Any) -> str:
    return "(not there)" if value is MISSING else repr(value)
