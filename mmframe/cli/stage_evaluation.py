"""`validate`, `test`, `predict`: one stage of a recipe, by default with the weights that its run handed on."""

from __future__ import annotations

from dataclasses import replace

from mmframe.cli.arguments import RunArguments
from mmframe.cli.chain import Chain, _say
from mmframe.cli.job import Handover, Job
from mmframe.errors import UserError


def evaluate(args: RunArguments) -> int:
    """Runs `args.command` on one stage.

    Raises:
        UserError: If the recipe has stages and none is chosen, or for mistakes in the recipe.
    """
    chain = Chain(args)
    if args.stage is None and len(chain.steps) > 1:
        names = ", ".join(str(step.stage) for step in chain.steps)
        raise UserError(f"recipe {chain.name}: has stages; choose one with --stage: {names}")
    step = chain.steps[chain.selected()[0]]
    handover = Handover(recipe=chain.name)
    chosen = any(key in ("model.init_from", "ckpt_path") for key, _ in args.overrides)
    if not chosen and step.config.get("ckpt_path") is None and step.run.weights.is_file():
        handover = replace(handover, init_from=str(step.run.weights))
        _say(f"weights: {step.run.weights}")
    elif not chosen:
        _say(f"weights: {step.own_start or 'as the recipe starts them'}; {step.run.weights} does not exist")
    from mmframe.cli.lightning_cli import run_job  # imports torch

    return run_job(Job(args.command, step.config, step.run, handover, None, args.on("--debug")))
