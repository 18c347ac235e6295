"""The runs of a grid: every variant under every seed, resolved and checked before the first one starts. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from mmframe.ablate.budget import StepsQuestion, share_out, steps_question
from mmframe.ablate.grid import Grid
from mmframe.ablate.variants import Variant, recipe_of, variants, with_overlay
from mmframe.cli.arguments import RunArguments
from mmframe.cli.chain import Chain
from mmframe.cli.recipe import Overlay, Recipe, differing_keys, recipe_hash
from mmframe.errors import UserError

SEED_KEYS = ("seed_everything", "data.init_args.seed")
Ask = Callable[[list[dict[str, Any]]], list[Any]]
"""Answers questions about models and data; see mmframe.ablate.survey."""


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        variant: Of the grid.
        seed: Of weights and data.
        recipe: Complete, with the steps that the budget allows.
        configs: Resolved configuration of each stage; "" is the one stage of a recipe without stages.
        parameters: Of its model: total, trainable, active; see mmframe.ablate.surveyor.
    """

    variant: Variant
    seed: int
    recipe: Recipe
    configs: dict[str, dict[str, Any]]
    parameters: dict[str, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Its name in the grid."""
        return f"{self.variant.id}-s{self.seed}"

    @property
    def hash(self) -> str:
        """Its name in the results folder: runs of any grids with the same resolved recipe are one run."""
        return recipe_hash(self.configs)[:12]

    @property
    def steps(self) -> dict[str, int]:
        """Optimiser steps of each stage; 0 where the recipe does not say."""
        stated = {stage: (config.get("trainer") or {}).get("max_steps") for stage, config in self.configs.items()}
        return {stage: max(0, int(steps or 0)) for stage, steps in stated.items()}


def plan(grid: Grid, ask: Ask) -> list[Run]:
    """The runs, variant by variant, each under every seed.

    Raises:
        UserError: the first mistake of any run; variants that are the same.
    """
    drafts = [(variant, seed, recipe_of(grid, variant, seed)) for variant in variants(grid) for seed in grid.seeds]
    runs = [Run(variant, seed, recipe, configs_of(recipe)) for variant, seed, recipe in drafts]
    models = [parameters_question(run.configs) for run in runs]
    asked = _asked(grid, runs)
    answers = ask([*models, *(question for _, _, question in asked), *metrics_questions(grid)])
    steps: dict[int, dict[str, int]] = {}
    for (number, stage, _), count in zip(asked, answers[len(models) :], strict=False):
        steps.setdefault(number, {})[stage] = count
    runs = [replace(run, parameters=counts) for run, counts in zip(runs, answers, strict=False)]
    runs = [_with_steps(run, steps[number]) if number in steps else run for number, run in enumerate(runs)]
    by_hash: dict[str, Run] = {}
    for run in runs:
        same = by_hash.setdefault(run.hash, run)
        if same is not run:
            raise UserError(
                f"{grid.file}: {run.variant.id} and {same.variant.id} resolve to the same recipe (seed {run.seed}); "
                "what one of them changes has no effect"
            )
    return runs


def configs_of(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Configurations of all stages as `fit` resolves them, checked."""
    chain = Chain(RunArguments("fit"), recipe)
    return {step.stage or "": step.config for step in chain.steps}


def parameters_question(configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the survey is asked about the model of a run: nothing of it depends on seeds or steps."""
    keys = ("backbone", "patch_embedder", "router", "freezing", "adapter")
    stages = {stage: {key: config["model"].get(key) for key in keys} for stage, config in configs.items()}
    return {"ask": "parameters", "stages": stages}


def metrics_questions(grid: Grid) -> list[dict[str, Any]]:
    """What the survey is asked about the evaluators: whether they give what the grid wants."""
    return [
        {"ask": "metrics", "name": name, "evaluator": evaluator, "wanted": grid.wanted_of(name)}
        for name, evaluator in grid.evaluators.items()
    ]


def _asked(grid: Grid, runs: list[Run]) -> list[tuple[int, str, StepsQuestion]]:
    """Number of the run, stage and question of everything whose steps the budget decides."""
    if grid.budget is None:
        return []
    base = configs_of(grid.recipe())
    return [
        (number, stage, steps_question(run.configs[stage], grid.budget.unit, amount))
        for number, run in enumerate(runs)
        for stage, amount in share_out(grid, base, list(run.configs)).items()
    ]


def _with_steps(run: Run, steps: dict[str, int]) -> Run:
    """The run with its number of steps; epochs of the recipe do not end it earlier."""
    stages = {}
    for stage, count in steps.items():
        epochs = (run.configs[stage].get("trainer") or {}).get("max_epochs")
        stages[stage] = {"trainer": {"max_steps": count, **({} if epochs in (None, -1) else {"max_epochs": -1})}}
    recipe = with_overlay(run.recipe, Overlay(stages=stages))
    return replace(run, recipe=recipe, configs=configs_of(recipe))


def differences(run: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """Keys in which two runs differ, seeds left out: key -> value in `run`, value in `other`."""
    return {
        key: (_value(run.configs, key), _value(other.configs, key))
        for key in differing_keys(run.configs, other.configs)
        if not key.endswith(SEED_KEYS)
    }


def _value(tree: Any, dotted: str) -> Any:
    for name in tree:  # stages may have dots in their names
        if dotted == name or dotted.startswith(f"{name}."):
            rest = dotted[len(name) + 1 :]
            return tree[name] if not rest else _value(tree[name], rest) if isinstance(tree[name], dict) else None
    return None
