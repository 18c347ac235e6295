"""`mmframe replay RUN`: runs a step again at which a run stopped, and names the first module that was not finite."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmframe.cli.flags import parse_flags
from mmframe.cli.job import Handover, Job
from mmframe.cli.run_dir import RunDir
from mmframe.cli.yamlio import load
from mmframe.errors import UserError

FOLDER = "faults"
ALONE = {
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "logger": False,
    "callbacks": None,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
}
"""Settings of the trainer: all ranks' batches are run by this process, one after another."""


def main(words: list[str]) -> int:
    """Entry of `mmframe replay`. Exit code 0 when the fault shows itself again, 1 when it does not."""
    args = parse_flags("replay", words, _flags)
    if args is None:
        return 0
    folder = find(args.run, args.step)
    run = RunDir(folder.parent.parent)
    config, _ = load(run.recipe)
    config = {**config, "trainer": {**(config.get("trainer") or {}), **ALONE}}
    from mmframe.replay import replay  # imports torch

    return replay(Job("fit", config, run, Handover(recipe=run.path.name), folder / "weights.ckpt"), folder)


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.description = "Runs a step again at which a run stopped, and names the first module that was not finite."
    parser.add_argument("run", type=Path, help="run directory of a stage that stopped, or of its recipe")
    parser.add_argument("--step", type=int, help="which, where there are several; default: the last")


def find(run: Path, step: int | None = None) -> Path:
    """The folder of a kept step.

    Raises:
        UserError: there is none, or not that one.
    """
    found = sorted([*run.glob(f"{FOLDER}/step-*"), *run.glob(f"*/{FOLDER}/step-*")], key=lambda p: p.stat().st_mtime)
    if step is not None:
        found = [path for path in found if path.name == f"step-{step:08d}"]
    if not found:
        which = "step" if step is None else f"step {step}"
        raise UserError(f"replay: {run} holds no {which} at which a run stopped (a folder {FOLDER}/step-N)")
    return found[-1]
