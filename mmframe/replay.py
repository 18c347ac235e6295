"""Runs a faulty step again, with every module watched: the part of `mmframe replay` that needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmframe import auxiliary as aux
from mmframe.checkpoint_files import damage
from mmframe.cli.job import Job
from mmframe.cli.lightning_cli import MMFrameCLI
from mmframe.cli.record import RunRecord
from mmframe.errors import UserError
from mmframe.faulty_step import FaultySteps, load_faulty_step
from mmframe.first_nonfinite import Seen, bad_values, watching
from mmframe.module import seed_micro_batch
from mmframe.trainer_checkpoints import trained_tensors


class _Built(MMFrameCLI):
    """Model, data and trainer of a job; nothing is run."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing."""


def replay(job: Job, folder: Path) -> int:
    """Prints what is found.

    Returns:
        0: something was not finite again; 1: everything was finite.
    """
    kept = load_faulty_step(folder)
    if wrong := damage(kept.weights):
        raise UserError(f"replay: {kept.weights} is damaged: {wrong}")
    cli = _Built(job, RunRecord(job))
    trainer, module = cli.trainer, cli.model
    trainer.precision_plugin.convert_module(module)
    state = trained_tensors(kept.weights)
    module.load_state_dict(state, strict=kept.weights.is_file())
    module.to(trainer.strategy.root_device).train()
    print(f"{folder}: step {kept.step}, {len(kept.batches)} micro-batch(es); recorded: {kept.wrong}")
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and bad_values(tensor)]
    print(f"weights: {f'{len(bad)} tensors are not finite, first {bad[0]}' if bad else 'finite'}")
    seen = [_run(trainer, module, kept, number) for number in range(len(kept.batches))]
    again = bool(bad) or any(seen)
    print("the fault shows itself again" if again else "everything was finite: the fault lies outside of this step")
    return 0 if again else 1


def _run(trainer: Any, module: Any, kept: FaultySteps, number: int) -> bool:
    """One micro-batch; whether something was not finite."""
    rank, micro, batch = kept.batches[number]
    batch = batch.to(trainer.strategy.root_device)
    seed_micro_batch(kept.seed, kept.step - 1, micro, rank)
    with watching(module.net) as seen:
        with trainer.precision_plugin.train_step_context(), aux.listening(module.net, module.auxiliary) as features:
            total, weight = module.objective(module.net, batch)
            if module.auxiliary:
                total = total + aux.total(module.auxiliary, module.net, batch, features, module.objective)[0]
        (total / weight.clamp(min=1e-8)).backward()
    loss = float(total.detach() / weight.clamp(min=1e-8))
    print(f"rank {rank}, micro-batch {micro}: loss {loss:.6g}")
    if bad := bad_values(batch.tiles.float()):
        print(f"  pictures: {bad:,} values are not finite (samples {', '.join(batch.keys)})")
    _tell(seen)
    return bool(seen.forward or seen.backward or loss - loss)


def _tell(seen: Seen) -> None:
    if seen.forward:
        print(f"  forward: the first that is not finite is {seen.forward[0]}")
    if seen.backward:
        made = "" if seen.forward else " (every output was finite: what comes after it makes the gradient)"
        print(f"  backward: the first gradient that is not finite is the one {seen.backward[0]}{made}")
    if not seen.forward and not seen.backward:
        print("  every output and every gradient is finite")
