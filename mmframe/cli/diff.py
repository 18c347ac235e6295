"""`mmframe diff A B`: the keys in which two recipes or two finished runs differ. Without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mmframe.cli.recipe import differing_keys, load_recipe
from mmframe.cli.run_dir import read_json
from mmframe.cli.yamlio import RecipeLoader
from mmframe.errors import UserError

USAGE = """usage: mmframe diff A B
A and B are run directories of a stage, or recipes: NAME, a file, NAME@STAGE for one stage. Of runs, seed, code revision
and versions are compared too. Exit code 0 when nothing differs, else 1."""

MISSING = object()


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
    """A run directory or a recipe as one tree.

    Raises:
        UserError: neither.
    """
    folder = Path(word)
    if (folder / "config.yaml").is_file():
        meta = read_json(folder / "meta.json")
        facts = {key: meta.get(key) for key in ("seed", "revision", "dirty", "versions")}
        return {**_load(folder / "config.yaml"), "run": facts}
    name, _, stage = word.partition("@")
    recipe = load_recipe([name])
    if stage:
        return recipe.resolve(stage)
    return {stage: recipe.resolve(stage) for stage in recipe.stages} if recipe.stages else recipe.resolve()


def _load(file: Path) -> dict[str, Any]:
    tree = yaml.load(file.read_text(encoding="utf-8"), RecipeLoader)
    if not isinstance(tree, dict):
        raise UserError(f"{file}: is no configuration")
    return tree


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
