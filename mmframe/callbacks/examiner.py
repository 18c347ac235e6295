"""The tasks of a callback: read once, a fixed part of each chosen, asked of the model in training again and again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.plugins import MixedPrecision

from mmframe.cli.record import RunRecord
from mmframe.errors import UserError
from mmframe.evaluate.ranks import Ranks
from mmframe.evaluate.record import Result
from mmframe.evaluate.run import Identity, evaluate_task
from mmframe.evaluate.subset import rank, subset
from mmframe.evaluation import check_language
from mmframe.loading import LoadedModel
from mmframe.tasks import Example, Task, load_task


@dataclass(frozen=True)
class Score:
    """What one evaluation of one task gave.

    Attributes:
        result: the record, with all rows.
        shown: the rows of the examples that are shown.
        digest: of the bits of all logits, of a task in mode perplexity; None: not asked for.
    """

    result: Result
    shown: list[dict[str, Any]]
    digest: str | None

    @property
    def value(self) -> float:
        return float(self.result.score)

    @property
    def record(self) -> dict[str, Any]:
        """The result as plain data, without its rows."""
        plain = asdict(replace(self.result, rows=[]))
        del plain["rows"]
        return plain

    @property
    def plain(self) -> dict[str, Any]:
        """What later scores are compared with."""
        return {"value": self.value, "digest": self.digest}


class Examiner:
    """Asks tasks, on all ranks together.

    Args:
        names: Of tasks, or files of some.
        data: Folder of the benchmarks' files.
        limit: Most examples of a task; None: all.
        batch_size: Examples at once.
        samples: Of each task, examples that are shown; of those asked the first by the hash of their ids.
        digests: Whether the logits of perplexities are compared, not only their value.

    Raises:
        UserError: a task cannot be read, or its answers are not public.
    """

    def __init__(
        self, names: list[str], data: Path | None, limit: int | None, batch_size: int, samples: int, digests: bool
    ) -> None:
        self.batch_size, self.digests = batch_size, digests
        tasks = [load_task(name, data) for name in names]
        for task in tasks:
            if not task.scored:
                raise UserError(f"task {task.name}: its answers are not public, so it gives no score in training")
        self.tasks: dict[str, Task] = {task.name: task for task in tasks}
        self.chosen = {name: subset(task, limit) for name, task in self.tasks.items()}
        self.shown = {name: self._shown(name, samples) for name in self.tasks}
        self._ranks: Ranks | None = None

    def _shown(self, name: str, count: int) -> list[Example]:
        indices = sorted(self.chosen[name], key=lambda index: rank(self.tasks[name][index].id))
        return [self.tasks[name][index] for index in indices[:count]]

    @property
    def ranks(self) -> Ranks:
        if self._ranks is None:
            self._ranks = Ranks.joined()  # a process group of its own, so it is made once
        return self._ranks

    def ask(self, model: LoadedModel, source: str, stop: Callable[[], bool]) -> dict[str, Score] | None:
        """Scores by the name of the task, the same on all ranks.

        Args:
            model: Who is asked.
            source: What records say of where it is.
            stop: Is asked before each task, on all ranks; None is returned when it says so on one of them.
        """
        ranks = self.ranks
        # over all weights, so once an evaluation and on one rank
        identity = ranks.gather(Identity.of(model.net, source) if ranks.first else None)[0]
        found = {}
        for name, task in self.tasks.items():
            if any(ranks.gather(stop())):
                return None
            chosen, shown = self.chosen[name], {example.id for example in self.shown[name]}
            result = evaluate_task(
                task, model, batch_size=self.batch_size, indices=chosen, identity=identity, ranks=ranks
            )
            digest = ranks.gather(self._digest(task, chosen, model) if ranks.first else None)[0]
            found[name] = Score(result, [row for row in result.rows if row["id"] in shown], digest)
        return found

    def _digest(self, task: Task, chosen: list[int], model: LoadedModel) -> str | None:
        if not self.digests or task.mode != "perplexity":
            return None
        return check_language(model.net, model.processor, [task[index].prompt for index in chosen], rows=1).digest


def as_loaded(trainer: pl.Trainer, module: Any) -> LoadedModel:
    """The model in training, as if its weights had been handed on now and loaded again; no tensor is copied."""
    record = run_record(trainer)
    metadata: dict[str, Any] = {"model": dict(module.hparams), "source": module.source}
    if record is not None:
        metadata["run"] = {"config": record.config_text}
    return LoadedModel(module.net, module.processor, metadata)


def run_record(trainer: pl.Trainer) -> RunRecord | None:
    """The record of the run; None where a Trainer was made by hand."""
    return next((c for c in trainer.callbacks if isinstance(c, RunRecord)), None)  # type: ignore[attr-defined]


def precision(trainer: pl.Trainer) -> AbstractContextManager[Any]:
    """Autocast where the run trains with it. Else parameters are of the type they compute in."""
    plugin = trainer.precision_plugin
    return plugin.forward_context() if isinstance(plugin, MixedPrecision) else nullcontext()
