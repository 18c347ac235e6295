"""The data of a recipe without its model: what `mmframe data plan` and `show` look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmframe.cli.arguments import RunArguments
from mmframe.cli.check import check, waits_for_start
from mmframe.cli.recipe import Recipe, load_recipe
from mmframe.errors import UserError


@dataclass(frozen=True)
class DataJob:
    """One stage of a recipe: its data, connected to the tokenizer and the tile geometry of its model.

    Attributes:
        name: recipe and stage.
        folder: for what is written about it.
        data: connected data component.
        embedder: patch embedder without weights.
    """

    name: str
    folder: Path
    data: Any
    embedder: Any


def open_job(args: RunArguments, workers: int | None = None, fresh: bool = False) -> DataJob:
    """Builds the data of one stage; the model is not built, its patch embedder only on the meta device.

    Args:
        args: recipe, stage, overrides and run directory.
        workers: processes that measure; None: those of the recipe.
        fresh: measure again, whatever the cache holds.

    Raises:
        UserError: mistakes in the recipe; the stage is not named, or waits for a checkpoint.
    """
    recipe, config = resolved(args)
    from mmframe import registry  # torch from here on
    from mmframe.cli.lightning_cli import qualify

    registry.discover()
    config = qualify(config)
    stage = args.stage or (next(iter(recipe.stages)) if recipe.stages else None)
    processor, embedder = component(config["model"]["processor"]), geometry(config["model"]["patch_embedder"])
    data = component(config["data"])
    if workers is not None:
        data.num_workers = workers
    data.fresh = fresh
    folder = (args.run_dir or Path("runs") / recipe.name) / "data" / (stage or "")
    if hasattr(data, "quarantine"):
        data.quarantine.open(folder)
    data.connect(processor, embedder)
    return DataJob(f"{recipe.name}{' ' + stage if stage else ''}", folder, data, embedder)


def resolved(args: RunArguments) -> tuple[Recipe, dict[str, Any]]:
    """The recipe and the configuration of its stage, checked."""
    recipe = load_recipe(args.configs).with_overrides(args.overrides)
    recipe.check_stage(args.stage)
    if recipe.stages and args.stage is None and len(recipe.stages) > 1:
        raise UserError(f"recipe {recipe.name}: has stages; choose one with --stage: {', '.join(recipe.stages)}")
    stage = args.stage or (next(iter(recipe.stages)) if recipe.stages else None)
    config = check(recipe, stage, complete=False)
    if waits_for_start(recipe, config, stage):
        raise UserError(f"recipe {recipe.name}: its tokenizer comes from a checkpoint; name one: --start_from=FOLDER")
    return recipe, config


def component(spec: Any) -> Any:
    """The object that a component of a recipe describes; its name alone will do."""
    from mmframe.loading import build

    return build({"class_path": spec} if isinstance(spec, str) else spec)


def geometry(spec: Any) -> Any:
    """The patch embedder on the meta device: it says how many tokens a tile gives."""
    import torch

    spec = {"class_path": spec} if isinstance(spec, str) else spec
    arguments = {k: v for k, v in (spec.get("init_args") or {}).items() if k != "weights"}
    with torch.device("meta"):
        return component({"class_path": spec["class_path"], "init_args": {"hidden_size": 64} | arguments})
