"""The stages of a recipe in order: each in its own directory, each from the weights before it, none of them twice."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmframe.checkpoint_files import newest_whole
from mmframe.cli.arguments import RunArguments
from mmframe.cli.check import check
from mmframe.cli.job import Handover, Job
from mmframe.cli.recipe import Recipe, load_recipe, recipe_hash
from mmframe.cli.run_dir import RunDir, State, is_rank_zero, write_atomically
from mmframe.cli.run_state import CHAIN, chain_text
from mmframe.cli.start_from import fingerprint
from mmframe.errors import UserError


@dataclass(frozen=True)
class Step:
    """One stage of the chain (or the only run of a recipe without stages)."""

    stage: str | None
    config: dict[str, Any]
    run: RunDir
    fixed_start: bool
    """The recipe or the command line says which weights this stage starts from."""

    @property
    def own_start(self) -> Path | None:
        """Weights that the recipe or the command line names."""
        given = self.config["model"].get("init_from") if self.fixed_start else None
        return None if given is None else Path(given)

    @property
    def steps(self) -> int:
        """Optimiser steps; 0 when the stage does not say."""
        return max(0, int((self.config.get("trainer") or {}).get("max_steps") or 0))

    @property
    def length(self) -> str:
        """How long it trains, in words."""
        epochs = int((self.config.get("trainer") or {}).get("max_epochs") or 0)
        parts = [f"{self.steps} steps"] if self.steps else []
        parts += [f"{epochs} epoch{'s' if epochs > 1 else ''}"] if epochs > 0 else []
        return " or ".join(parts) or "steps not limited"


class Chain:
    """A recipe, checked, with its run directory.

    Args:
        args: The command line.
        recipe: What to run; None: what the command line names.

    Raises:
        UserError: For mistakes in the recipe or the command line.
    """

    def __init__(self, args: RunArguments, recipe: Recipe | None = None) -> None:
        recipe = (recipe or load_recipe(args.configs)).with_overrides(args.overrides)
        recipe.check_stage(args.stage)
        self.args = args
        self.name = recipe.name
        self.root = args.run_dir or Path("runs") / recipe.name
        self.steps = [self._step(recipe, stage, i) for i, stage in enumerate(recipe.stages or [None])]

    def _step(self, recipe: Recipe, stage: str | None, index: int) -> Step:
        config = check(recipe, stage)
        # the stage itself may say where it starts; said for the whole recipe it is the start of the first stage,
        # or, on the command line, of the one stage that is asked for
        own = any(
            (said.get("model") or {}).get("init_from") is not None or said.get("start_from") is not None
            for said in recipe.own_layers(stage)
        )
        keys = {key for key, _ in recipe.overrides}
        for key in ("model.init_from", "start_from"):
            own = own or f"stages.{stage}.{key}" in keys or (key in keys and self.args.stage == stage)
        fixed = index == 0 or own
        if not fixed:
            config["model"].pop("init_from", None)  # the chain sets it
        path = self.root / stage if stage else self.root
        return Step(stage, config, RunDir(path), fixed)

    def handover(self, index: int) -> Handover:
        """What stage `index` (from 0) is told."""
        if self.args.handover:
            return Handover.from_json(self.args.handover)
        step = self.steps[index]
        total = sum(s.steps for s in self.steps) if all(s.steps for s in self.steps) else 0
        base = Handover(
            recipe=self.name,
            stage=step.stage,
            index=index + 1,
            count=len(self.steps),
            steps_before=sum(s.steps for s in self.steps[:index]) if total else 0,
            steps_total=total,
        )
        if step.fixed_start:
            return replace(base, started_from=fingerprint(step.own_start) if step.own_start else None)
        before = self.steps[index - 1].run
        return replace(base, init_from=str(before.weights), started_from=before.weights_id())

    def state(self, index: int) -> State:
        """What is there of stage `index`; raises when it belongs to another recipe."""
        return self.steps[index].run.state(self.steps[index].config, self.handover(index).started_from)

    def job(self, index: int, state: State) -> Job:
        """The job of one stage.

        Raises:
            UserError: If the stage before has not been run.
        """
        step, handover = self.steps[index], self.handover(index)
        if handover.init_from and not Path(handover.init_from).is_file():
            before = self.steps[index - 1].stage if index else "the stage before"
            raise UserError(
                f"stage {step.stage} starts from the weights of {before}, but {handover.init_from} does not exist; "
                f"run that stage first, or give --model.init_from=FILE (null: from the backbone's own weights)"
            )
        resume = None
        if state == "cut off" and step.config.get("ckpt_path") is None:
            resume = Path(handover.resume) if handover.resume else self._newest(step)
            handover = replace(handover, resume=str(resume))
        return Job("fit", step.config, step.run, handover, resume, self.args.on("--debug"))

    @staticmethod
    def _newest(step: Step) -> Path:
        """The newest checkpoint that is whole."""
        path, damaged = newest_whole(step.run.last.parent)
        if path is None:
            raise UserError(f"{'; '.join(damaged)}; none is whole: --force starts the stage over, and keeps the files")
        for line in damaged:
            _say(f"{line}; set aside as .damaged, the one before it is taken")
        return path

    def list_stages(self) -> None:
        """Writes chain.json: which stages there are, in order, for those who watch."""
        if self.steps[0].stage is not None:
            self.root.mkdir(parents=True, exist_ok=True)
            text = chain_text(self.name, {str(step.stage): step.steps for step in self.steps})
            write_atomically(self.root / CHAIN, text)

    def selected(self) -> list[int]:
        """Numbers of the stages to run, from 0."""
        return [i for i, step in enumerate(self.steps) if self.args.stage in (None, step.stage)]


def fit(args: RunArguments, recipe: Recipe | None = None) -> int:
    """Runs a recipe: all stages, or one.

    Args:
        args: The command line.
        recipe: What to run; None: what the command line names.

    Returns:
        Exit code: 0 when everything is done.
    """
    chain = Chain(args, recipe)
    if args.on("--dry-run"):
        return dry_run(chain)
    if len(chain.selected()) > 1 and started_together() and not args.on("--in-process"):
        raise UserError(
            f"{started_together()} processes were started together, and they end with a stage: run one stage at a time "
            f"with --stage ({', '.join(str(step.stage) for step in chain.steps)}); see docs/distributed.md"
        )
    fresh = args.on("--force")
    if fresh and is_rank_zero() and not args.handover:
        for index in chain.selected():
            chain.steps[index].run.set_aside()
    for index in () if fresh else chain.selected():
        chain.state(index)  # what does not fit is told before the first stage starts, not hours later
    if is_rank_zero() and not args.handover:
        chain.list_stages()
    for index in chain.selected():
        step = chain.steps[index]
        state: State = "new" if fresh and not is_rank_zero() else chain.state(index)
        job = chain.job(index, state) if state != "done" else None
        if job is None:
            _say(f"{_label(chain, index)} done, skipped ({step.run.path}); --force runs it again")
            continue
        if args.handover:
            pass  # the chain has said it
        elif job.resume is not None:
            _say(f"{job.label} was cut off; continues from {job.resume}")
        else:
            start = job.handover.init_from or step.own_start
            _say(f"{job.label} starts in {step.run.path}{f', from {start}' if start else ''}")
        alone = step.stage is None or args.stage is not None or args.handover or args.on("--in-process")
        code = _run_here(job) if alone else _run_process(job)
        if code:
            if code not in (2, 130, 143) and not args.handover:  # of these the stage itself has told
                _say(f"{job.label} ended with exit code {code}; the same command goes on from there")
            return code
        if is_rank_zero() and not step.run.done.is_file() and not _is_trial(step.config):
            _say(f"{job.label} ended without done.json; the same command goes on from there")
            return 1
    return 0


def _is_trial(config: dict[str, Any]) -> bool:
    return bool((config.get("trainer") or {}).get("fast_dev_run"))


def _label(chain: Chain, index: int) -> str:
    step = chain.steps[index]
    return f"[{index + 1}/{len(chain.steps)} {step.stage}]" if step.stage else f"[{chain.name}]"


def _say(text: str) -> None:
    if is_rank_zero():
        print(text, file=sys.stderr, flush=True)


def dry_run(chain: Chain) -> int:
    """Says what `fit` would do. Everything is resolved and checked; nothing is written."""
    print(f"recipe {chain.name}, run directory {chain.root}")
    for index in chain.selected():
        step = chain.steps[index]
        fresh = chain.args.on("--force")
        state: State = "new" if fresh else chain.state(index)
        does = {"new": "would run", "cut off": "would be continued", "done": "done, would be skipped"}[state]
        components = ", ".join(
            f"{key} {value['class_path'].rpartition('.')[2]}"
            for key, value in {**step.config["model"], "data": step.config["data"]}.items()
            if isinstance(value, dict) and "class_path" in value
        )
        start = f", from {step.own_start}" if step.own_start else ""
        print(f"{_label(chain, index)} {does}: {step.length}{start}, hash {recipe_hash(step.config)}; {components}")
    return 0


def _run_here(job: Job) -> int:
    if job.handover.parent is not None:
        # ranks that Lightning starts have the first rank for a parent, and the same words on their command line
        end_with(job.handover.parent if os.environ.get("LOCAL_RANK", "0") == "0" else os.getppid())
    from mmframe.cli.lightning_cli import run_job  # imports torch

    gc.freeze()  # so that the collection below looks through what this stage made, and not through all of torch
    try:
        return run_job(job)
    finally:
        gc.collect()  # before the next stage: a trainer and its model refer to one another
        gc.unfreeze()


def _run_process(job: Job) -> int:
    """Runs the stage as `python -m mmframe fit`; SIGTERM and Ctrl-C go on to it."""
    job.run.start(job.config)
    told = replace(job.handover, parent=os.getpid())
    words = [sys.executable, "-m", "mmframe", "fit", "--config", str(job.run.recipe), f"--run-dir={job.run.path}"]
    words += [f"--handover={told.to_json()}", *(["--debug"] if job.debug else [])]
    process = subprocess.Popen(words)
    stopped: list[int] = []

    def pass_on(signum: int, frame: Any) -> None:
        stopped.append(signum)
        process.send_signal(signum)

    def noted(signum: int, frame: Any) -> None:
        stopped.append(signum)  # a terminal sends Ctrl-C to the stage as well

    handlers = {}
    try:
        handlers = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
            signal.SIGINT: signal.signal(signal.SIGINT, noted),
        }
    except ValueError:  # not in the main thread: signals stay with whoever has them
        pass
    try:
        code = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stopped:
        return 128 + stopped[0]
    return 128 - code if code < 0 else code


def started_together() -> int:
    """Processes that torchrun or srun started as one run; 0 where there is one."""
    counts = [int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")]
    return max(counts) if max(counts) > 1 else 0


def end_with(parent: int) -> None:
    """On Linux the kernel sends SIGTERM when the parent ends, so that nothing goes on alone and meets its successor."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise UserError("the process that started this one has ended")
