"""Variants: what a grid's mode makes of its axes, and the recipe of each under a seed. No torch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

from mmframe.ablate.grid import Change, Grid
from mmframe.catalog import catalog
from mmframe.cli.recipe import Overlay, Recipe
from mmframe.errors import UserError, suggest

LAST_VALIDATION = {"class_path": "mmframe.callbacks.last_validation.LastValidation"}


@dataclass(frozen=True)
class Variant:
    """One line of the table.

    Args:
        id: Its name in the table, unique in the grid.
        axis: The axis along which it leaves the baseline; "" for the baseline of several axes and for products.
        baseline: What the others are compared with.
        changes: In order: of every run, then of each axis.
    """

    id: str
    axis: str
    baseline: bool
    changes: tuple[Change, ...]


def variants(grid: Grid) -> list[Variant]:
    """The variants of a grid, the baseline first."""
    axes = {axis: list(changes) for axis, changes in grid.axes.items()}
    first = {axis: names[0] for axis, names in axes.items()}
    chosen = [first]
    if grid.mode == "product":
        chosen = [dict(zip(axes, names, strict=True)) for names in itertools.product(*axes.values())]
    else:
        chosen += [{**first, axis: name} for axis, names in axes.items() for name in names[1:]]
    return [_variant(grid, choice, first) for choice in chosen]


def _variant(grid: Grid, choice: dict[str, str], first: dict[str, str]) -> Variant:
    moved = [axis for axis in choice if choice[axis] != first[axis]]
    if len(choice) == 1:
        ((axis, name),) = choice.items()
    elif grid.mode == "product":
        axis, name = "", "+".join(choice.values())
    else:
        axis = moved[0] if moved else ""
        name = f"{axis}.{choice[axis]}" if moved else "baseline"
    changes = (grid.overrides, *(grid.axes[axis][variant] for axis, variant in choice.items()))
    return Variant(name, axis, not moved, changes)


def recipe_of(grid: Grid, variant: Variant, seed: int) -> Recipe:
    """The recipe of a variant under a seed: weights, order of the data and all that is drawn.

    `{seed}` in `model.init_from` becomes the seed: variants can share a start that is another one for each seed.

    The last step of every stage is validated, so that runs are compared where they have ended.

    Raises:
        UserError: a stage that the recipe has not; two changes that both name another base.
    """
    bases = [change.base for change in variant.changes if change.base]
    if len(bases) > 1:
        raise UserError(f"{grid.file}: variant {variant.id}: two of its changes name another base")
    recipe = grid.recipe(*bases)
    for change in variant.changes:
        for stage in (*change.overlay.stages, *change.dropped):
            if stage not in recipe.stages:
                place = change.overlay.places.get(("stages", stage), str(grid.file))
                raise UserError(
                    f"{place}: variant {variant.id}: recipe {recipe.name} has no stage {stage!r}; "
                    f"{suggest(stage, recipe.stages)}"
                )
    dropped = {stage for change in variant.changes for stage in change.dropped}
    if recipe.stages and dropped >= set(recipe.stages):
        raise UserError(f"{grid.file}: variant {variant.id}: all stages are left out")
    kept = {stage: said for stage, said in recipe.stages.items() if stage not in dropped}
    recipe = replace(recipe, stages=kept, overlays=tuple(change.overlay for change in variant.changes))
    own: dict[str, Any] = {"seed_everything": seed, "trainer": {"callbacks+": [LAST_VALIDATION]}}
    start = (recipe.resolve(next(iter(recipe.stages), None)).get("model") or {}).get("init_from")
    if isinstance(start, str) and "{seed}" in start:  # in common: said of a later stage, it would cut the chain
        own["model"] = {"init_from": start.replace("{seed}", str(seed))}
    stages = {}
    for stage in recipe.stages or ("",):
        data = recipe.resolve(stage or None).get("data")
        if isinstance(data, dict) and _takes_seed(data.get("class_path")):
            stages[stage] = {"data": {"init_args": {"seed": seed}}}
    return with_overlay(recipe, Overlay(own, stages))


def with_overlay(recipe: Recipe, overlay: Overlay) -> Recipe:
    """The recipe under one more overlay."""
    return replace(recipe, overlays=(*recipe.overlays, overlay))


def _takes_seed(name: object) -> bool:
    entry = catalog().get(str(name).rpartition(".")[2])
    return entry is not None and (entry.signature.open or "seed" in entry.signature.arguments)
