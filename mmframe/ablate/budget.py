"""Budgets: from samples or tokens to optimiser steps. No torch.

A schedule must know its last step before the first one, so a budget becomes `trainer.max_steps`: the smallest number of
steps that reaches it. It is not computed from averages but counted: the survey walks through the data in the order in
which training will, step by step (epochs, a smaller last batch, accumulation, devices), and adds up what each step
holds; rows know their lengths without decoding a picture. So the number is exact, and a run exceeds its budget by less
than one step. What was really seen stands in the table.

A sample is a row that the data hands out: with packing it holds several records.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmframe.ablate.grid import Grid
from mmframe.errors import UserError, suggest

StepsQuestion = dict[str, Any]


def share_out(grid: Grid, base: dict[str, dict[str, Any]], stages: list[str]) -> dict[str, int]:
    """What each stage of a run may see: the budget, in proportion to the shares of the stages that it has.

    Args:
        grid: With a budget.
        base: Resolved stages of the base recipe, whose max_steps are the shares where the grid gives none.
        stages: Of the run.

    Returns:
        Whole numbers that add up to the budget exactly.

    Raises:
        UserError: a share of a stage that is not there, a stage without one, or too little for one of them.
    """
    budget = grid.budget
    assert budget is not None
    for stage in budget.shares:
        if stage not in base and stage not in stages:
            where = grid.places.get(("budget", "shares", stage), str(grid.file))
            raise UserError(f"{where}: budget.shares: no stage is called {stage!r}; {suggest(stage, stages)}")
    if len(stages) == 1:
        return {stages[0]: budget.amount}
    steps = {stage: (config.get("trainer") or {}).get("max_steps") or 0 for stage, config in base.items()}
    shares = budget.shares or {stage: max(0, count) for stage, count in steps.items()}
    lacking = [stage for stage in stages if not shares.get(stage)]
    if lacking:
        raise UserError(
            f"{grid.places.get(('budget',), str(grid.file))}: budget: stage {lacking[0]} has no share: the base recipe "
            "gives it no max_steps; write shares: {STAGE: NUMBER, ...} for all stages"
        )
    total, seen, ends = sum(shares[stage] for stage in stages), 0.0, [0]
    for stage in stages:
        seen += shares[stage]
        ends.append(round(budget.amount * seen / total))
    found = {stage: ends[n + 1] - ends[n] for n, stage in enumerate(stages)}
    if min(found.values()) < 1:
        raise UserError(f"{grid.file}: budget: {budget.amount} {budget.unit} leave nothing for a stage: {found}")
    return found


def steps_question(config: dict[str, Any], unit: str, amount: int) -> StepsQuestion:
    """What the survey is asked about a stage: all that its number of steps depends on, and nothing else."""
    model, trainer = config["model"], config.get("trainer") or {}
    return {
        "ask": "steps",
        "unit": unit,
        "amount": amount,
        "data": config["data"],
        "processor": model.get("processor"),
        "patch_embedder": model.get("patch_embedder"),
        "accumulate": trainer.get("accumulate_grad_batches") or 1,
        "ranks": ranks(trainer),
        "limit": trainer.get("limit_train_batches"),
    }


def ranks(trainer: dict[str, Any]) -> int:
    """Devices that a run takes; "auto" and -1 are one, as a run sees one slot."""
    devices = trainer.get("devices", 1)
    count = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) and devices > 0 else 1
    return count * int(trainer.get("num_nodes") or 1)


def step_rows(
    rows: int, batch_size: int, accumulate: int = 1, ranks: int = 1, limit: int | float | None = None
) -> Iterator[tuple[int, list[int]]]:
    """(epoch, rows) of each optimiser step over all ranks, as mmframe.data.base.EpochSampler deals them.

    Args:
        rows: Of an epoch.
        batch_size: For each device.
        accumulate: Batches of a step; the last step of an epoch takes what is left.
        ranks: Devices.
        limit: trainer.limit_train_batches.
    """
    places = -(-rows // ranks)
    batches = -(-places // batch_size)
    batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit) if limit else batches
    epoch = 0
    while batches:
        for first in range(0, batches, accumulate):
            end = min(places, min(first + accumulate, batches) * batch_size)
            yield epoch, [p * ranks + r for p in range(first * batch_size, end) for r in range(ranks)]
        epoch += 1


def steps_within(amount: int, sizes: Iterator[int]) -> int:
    """The smallest number of steps that reaches an amount.

    Args:
        amount: Samples or tokens.
        sizes: Of each step, without end.
    """
    seen = steps = 0
    while seen < amount:
        seen += next(sizes)
        steps += 1
    return steps
