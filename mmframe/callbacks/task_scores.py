"""Tasks asked in the middle of training: their scores beside the losses, and a few answers over time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from mmframe.callbacks.answer_sheet import AnswerSheet, append_lines, to_tensorboard
from mmframe.callbacks.examiner import Examiner, Score, as_loaded, precision, run_record
from mmframe.callbacks.undisturbed import clocks_stopped, undisturbed
from mmframe.errors import UserError
from mmframe.registry import register

RESULTS = "results.jsonl"
START = "start"


@register("callback")
class TaskScores(Callback):
    """Asks tasks before the first step, every `every` optimiser steps and after the last one.

    Logs `GROUP/TASK/FIGURE` (the task's headline figure), and writes into the run directory: GROUP/results.jsonl, the
    full record of every evaluation; GROUP/samples.jsonl and GROUP/samples.html, the answers to a few examples over
    time. TensorBoard gets the answers too. The weights are asked as they would be handed on at that step.

    Training is not disturbed: a run with it ends with the same weights to the last bit. Every evaluation asks the
    same examples, which are chosen by their ids alone. A run that is continued takes the schedule up where it was;
    a step whose evaluation was stopped by a signal is asked when the run goes on. `GROUP/time_share` is the
    percentage of the run's time that evaluations took so far.

    Args:
        tasks: Names of tasks or files of some; `mmframe evaluate tasks` lists them.
        every: Optimiser steps between two evaluations.
        limit: Most examples of a task; null takes all.
        data: Folder of the benchmarks' files, as `mmframe evaluate --data`.
        batch_size: Examples at once.
        samples: Of each task, examples whose answers are kept; 0 keeps none.
        against: ``start`` or a MODEL: also logs `GROUP/TASK/delta`, the figure less that of the first step or of that
            model, and of perplexities `GROUP/TASK/identical`: 1 where all logits are its logits to the last bit.
        group: Under which it logs, and its folder in the run directory.
    """

    def __init__(
        self,
        tasks: list[str],
        every: int,
        limit: int | None = 200,
        data: str | None = None,
        batch_size: int = 8,
        samples: int = 6,
        against: str | None = None,
        group: str = "tasks",
    ) -> None:
        what = type(self).__name__
        if not tasks or len(set(tasks)) < len(tasks):
            raise UserError(f"{what}: tasks={tasks}: name at least one, each once; `mmframe evaluate tasks` lists them")
        least = {"every": (every, 1), "limit": (limit, 1), "batch_size": (batch_size, 1), "samples": (samples, 0)}
        for name, (value, smallest) in least.items():
            if value is not None and value < smallest:
                raise UserError(f"{what}: {name}={value} must be at least {smallest}")
        self.names, self.every, self.limit, self.data = tasks, every, limit, data
        self.batch_size, self.samples, self.against, self.group = batch_size, samples, against, group
        self.last: int | None = None
        """Step of the last evaluation that came to its end."""
        self.baseline: dict[str, dict[str, Any]] = {}
        """What scores are compared with: by task, {"value", "digest"}."""
        self.seconds = self.run_seconds = 0.0
        """Of all evaluations, and of the run, over every attempt."""
        self._mark = 0.0

    @property
    def state_key(self) -> str:
        return f"TaskScores/{self.group}/{','.join(self.names)}"  # several in one run have a state each

    def state_dict(self) -> dict[str, Any]:
        self._tick()
        return {name: getattr(self, name) for name in ("last", "baseline", "seconds", "run_seconds")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def totals(self, trainer: pl.Trainer) -> dict[str, float]:
        """For done.json."""
        return {f"{self.group}_seconds": round(self.seconds, 3)}

    # ---- when -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(c, TaskScores) and c is not self and c.group == self.group for c in callbacks):
            raise UserError(f"trainer.callbacks: two log under {self.group!r}; give one of them another `group`")
        _refuse_sharded(trainer, type(self).__name__)
        data = None if self.data is None else Path(self.data).expanduser()
        compares = self.against is not None
        self.examiner = Examiner(self.names, data, self.limit, self.batch_size, self.samples, compares)
        record = run_record(trainer)
        self.run = Path(trainer.default_root_dir) if record is None else record.job.run.path
        self.folder = self.run / self.group
        self.sheet = AnswerSheet(self.folder, self.examiner.shown) if self.samples else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._mark = time.monotonic()
        # before the first step; or where a signal came before the evaluation of this step had ended
        if self.last is None or self._is_due(trainer.global_step):
            self._evaluate(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self._is_due(trainer.global_step):  # the micro-batches that follow are of the next step: not due again
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.last != trainer.global_step:
            self._evaluate(trainer, pl_module, at_the_end=True)

    def _is_due(self, step: int) -> bool:
        return step > 0 and step % self.every == 0 and step != self.last

    # ---- what -------------------------------------------------------------------------------------------------------

    def _evaluate(self, trainer: pl.Trainer, module: pl.LightningModule, at_the_end: bool = False) -> None:
        begun, step = time.monotonic(), trainer.global_step

        def stop() -> bool:
            """A signal leaves little time. At the end the stage is done: nobody would ask again."""
            return trainer.received_sigterm and step > 0 and not at_the_end

        with clocks_stopped(trainer, module), undisturbed(module), precision(trainer):
            if self.against not in (None, START) and not self.baseline:
                self.baseline = self._of_model(module)
            found = self.examiner.ask(as_loaded(trainer, module), str(self.run), stop)
        seconds = time.monotonic() - begun
        self.seconds += seconds
        if found is None:
            return  # `last` stays what it was, so the run that goes on asks
        if self.against == START and not self.baseline:
            self.baseline = {name: score.plain for name, score in found.items()}
        self.last = step
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            self._write(step, found)
        self._log(trainer, step, found, seconds)

    def _of_model(self, module: pl.LightningModule) -> dict[str, dict[str, Any]]:
        from mmframe.loading import from_pretrained

        parameter, source = next(module.parameters()), str(self.against)
        model = from_pretrained(source, parameter.device, parameter.dtype)
        found = self.examiner.ask(model, source, stop=lambda: False) or {}
        return {name: score.plain for name, score in found.items()}

    def _write(self, step: int, found: dict[str, Score]) -> None:
        lines = []
        for name, score in found.items():
            compared = {"against": self.baseline[name]} if self.against else {}
            line = {"step": step, "task": name, "figure": score.result.headline, **score.plain, **compared}
            lines.append({**line, "result": score.record})
        append_lines(self.folder / RESULTS, lines)
        if self.sheet is not None:
            rows = [{"step": step, "task": name, **row} for name, score in found.items() for row in score.shown]
            self.sheet.add(rows)

    def _log(self, trainer: pl.Trainer, step: int, found: dict[str, Score], seconds: float) -> None:
        self._tick()
        values, words = {}, []
        for name, score in found.items():
            key, told = f"{self.group}/{name}", f"{name} {score.value:.4g}"
            values[f"{key}/{score.result.headline}"] = score.value
            if self.against:
                start = self.baseline[name]
                values[f"{key}/delta"] = delta = score.value - start["value"]
                told += f" ({delta:+.4g})" if delta else " (as before)"
                if score.digest is not None:
                    values[f"{key}/identical"] = float(score.digest == start["digest"])
            words.append(told)
        values[f"{self.group}/seconds"] = seconds
        values[f"{self.group}/time_share"] = 100 * self.seconds / max(self.run_seconds, 1e-9)
        # not module.log: it drops what is no multiple of log_every_n_steps, and refuses at the end of training
        for logger in trainer.loggers:
            logger.log_metrics(values, step)
            if isinstance(logger, TensorBoardLogger) and self.sheet is not None and trainer.is_global_zero:
                for name, score in found.items():
                    to_tensorboard(
                        logger.experiment, f"{self.group}/{name}", self.examiner.shown[name], score.shown, step
                    )
            logger.save()
        numbers = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
        trainer.callback_metrics.update(numbers)  # what done.json holds, and what ModelCheckpoint may monitor
        if trainer.is_global_zero:
            show = trainer.progress_bar_callback.print if trainer.progress_bar_callback else print
            show(f"{self.group} at step {step}: {', '.join(words)}  [{seconds:.1f} s]")

    def _tick(self) -> None:
        now = time.monotonic()
        self.run_seconds += now - self._mark if self._mark else 0.0
        self._mark = now


@register("callback")
class Retention(TaskScores):
    """What is left of a language model's language: text tasks, compared with the first step of the stage.

    As TaskScores, logged as `retention/...`, with `delta` and `identical` beside each score. While the text path is
    frozen every delta is 0 and all logits are identical to the last bit; where text weights train, it says what that
    cost.

    Args:
        tasks: Of text: perplexity, likelihood, or generated answers.
        every: Optimiser steps between two evaluations.
        limit: Most examples of a task; null takes all.
        data: Folder of the benchmarks' files, as `mmframe evaluate --data`.
        batch_size: Examples at once.
        samples: Of each task, examples whose answers are kept; 0 keeps none.
        against: ``start``: the first step of this stage; or a MODEL, such as the text LLM that all stages began with.
        group: Under which it logs, and its folder in the run directory.
    """

    def __init__(
        self,
        tasks: list[str],
        every: int,
        limit: int | None = 200,
        data: str | None = None,
        batch_size: int = 8,
        samples: int = 0,
        against: str = START,
        group: str = "retention",
    ) -> None:
        super().__init__(tasks, every, limit, data, batch_size, samples, against, group)


def _refuse_sharded(trainer: pl.Trainer, what: str) -> None:
    """Ranks that hold a part of the parameters each could only ask together."""
    strategy = type(trainer.strategy).__name__
    if any(word in strategy for word in ("FSDP", "ModelParallel", "DeepSpeed")):
        raise UserError(
            f"{what}: trainer.strategy shards the parameters ({strategy}), and one rank asks of whole ones; train with "
            "ddp, or leave the callback out and use `mmframe evaluate` on the finished stage"
        )
