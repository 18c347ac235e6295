"""`mmframe recipes ls | show | cp | validate`: without torch."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from pathlib import Path

import yaml

from mmframe.cli.arguments import RunArguments, parse
from mmframe.cli.check import check, waits_for_start
from mmframe.cli.merge import merge_config
from mmframe.cli.recipe import Recipe, find, load_recipe, recipe_hash, recipe_root, shipped
from mmframe.cli.yamlio import RecipeLoader, dump
from mmframe.errors import UserError, suggest

USAGE = """usage: mmframe recipes ls
       mmframe recipes show NAME [--stage S] [--key=value ...]   the resolved LightningCLI configuration
       mmframe recipes cp NAME FILE                              a copy to change; resolves to the same
       mmframe recipes validate [NAME ...]                       keys, names and values, of all recipes by default
NAME is a shipped recipe or a path."""


def main(words: list[str]) -> int:
    """Runs `mmframe recipes ...`."""
    command, rest = (words[0], words[1:]) if words else ("--help", [])
    if command in ("--help", "-h") or "--help" in rest:
        print(USAGE)
        return 0
    commands = {"ls": ls, "show": show, "cp": copy, "validate": validate}
    if command not in commands:
        raise UserError(f"recipes: unknown command {command!r}; {suggest(command, commands)}")
    return commands[command](rest)


def ls(words: list[str]) -> int:
    """Name, stages and first line of the shipped recipes."""
    rows = []
    for name, file in shipped().items():
        recipe = load_recipe([str(file)])
        rows.append((name, str(len(recipe.stages) or 1), _title(file)))
    width = max((len(name) for name, _, _ in rows), default=0)
    for name, stages, title in rows:
        head = f"{name:<{width}}  {stages} {'stage ' if stages == '1' else 'stages'}  "
        print(head + textwrap.shorten(title, 120 - len(head), placeholder=" ..."))
    return 0


def _title(file: Path) -> str:
    for line in file.read_text(encoding="utf-8").splitlines():
        if text := line.lstrip("# ").strip():
            return text if line.startswith("#") else ""
    return ""


def show(words: list[str]) -> int:
    """Prints a resolved recipe."""
    args = parse("recipes show", words)
    if not args.configs:
        raise UserError(f"recipes show: which recipe? {suggest('', shipped())}")
    return print_resolved(args)


def print_resolved(args: RunArguments) -> int:
    """Prints the configuration of one stage; without --stage, of a recipe with stages, all of it."""
    recipe = load_recipe(args.configs).with_overrides(args.overrides)
    recipe.check_stage(args.stage)
    if recipe.stages and args.stage is None:
        print(f"# {recipe.name}: composed; --stage {' | '.join(recipe.stages)} shows what a stage resolves to")
        for stage in recipe.stages:
            check(recipe, stage, complete=False)
        print(dump({**_with_overrides(recipe), "stages": recipe.stages}), end="")
        return 0
    config = check(recipe, args.stage, complete=False)
    waits = "; the model comes from --start_from=CHECKPOINT" if waits_for_start(recipe, config, args.stage) else ""
    print(f"# {recipe.name}{' ' + args.stage if args.stage else ''}, hash {recipe_hash(config)}{waits}")
    print(dump(config), end="")
    return 0


def _with_overrides(recipe: Recipe) -> dict:
    common = Recipe(recipe.name, recipe.common, overrides=recipe.overrides)
    return merge_config(recipe.common, common.resolve())


def copy(words: list[str]) -> int:
    """Copies a recipe, comments and all; `base:` is rewritten so that the copy resolves to the same."""
    if len(words) != 2:
        raise UserError("recipes cp: needs a recipe and the file to write: mmframe recipes cp toy/evip my_evip.yaml")
    source, target = find(words[0]), Path(words[1])
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise UserError(f"recipes cp: {target} exists; choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    text = source.read_text(encoding="utf-8")
    node = yaml.compose(text, RecipeLoader)
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value == "base":
            bases = [value.value] if isinstance(value, yaml.ScalarNode) else [item.value for item in value.value]
            moved = [_moved(base, source, target) for base in bases]
            start, end = value.start_mark.index, value.end_mark.index
            kept = re.search(r"\s*\Z", text[start:end])
            text = text[:start] + f"[{', '.join(moved)}]" + (kept.group() if kept else "") + text[end:]
    target.write_text(text, encoding="utf-8")
    shutil.copymode(source, target)
    print(f"{target}: now `mmframe fit --config {target}`")
    return 0


def _moved(base: str, source: Path, target: Path) -> str:
    """`base` of `source`, as `target` must write it: a shipped name where it is one, else a path."""
    file = (source.parent / base).resolve()
    root = recipe_root()
    if not file.is_file():
        return base
    if root is not None and file.is_relative_to(root.resolve()):
        return file.relative_to(root.resolve()).with_suffix("").as_posix()
    return os.path.relpath(file, target.parent.resolve())


def validate(words: list[str]) -> int:
    """Checks every stage of the recipes; prints one line for each recipe."""
    args = parse("recipes validate", words)
    failures = 0
    for word in args.configs or list(shipped()):
        try:
            recipe = load_recipe([word]).with_overrides(args.overrides)
            for stage in recipe.stages or [None]:
                check(recipe, stage, complete=False)
            print(f"ok    {word}")
        except UserError as error:
            failures += 1
            print(f"ERROR {word}: {error}")
    return 2 if failures else 0
