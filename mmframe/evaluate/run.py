"""evaluate_task: one model, one task, one result. What the command line, `lightning test` and callbacks call."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

import mmframe
from mmframe.cli.progress_line import ProgressLine
from mmframe.engine import Engine
from mmframe.errors import UserError
from mmframe.evaluate.asking import Asking
from mmframe.evaluate.folder import AnswerFolder
from mmframe.evaluate.progress import Progress
from mmframe.evaluate.ranks import FirstRankFailed, Ranks
from mmframe.evaluate.record import Result
from mmframe.evaluate.scoring import Row, add_rows, counted, new_metric, with_scores
from mmframe.loading import LoadedModel
from mmframe.metrics import TaskMetric
from mmframe.model import MultimodalLM
from mmframe.provenance import code_revision, device_name
from mmframe.tasks.task import Task
from mmframe.weights import weights_digest

MAX_TILES = 12
"""Image budget where neither the task nor the model says one: that of the released models."""


class Judge(Protocol):
    """What mmframe.evaluate.judge does."""

    def apply(
        self, task: Task, metric: Any, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """The rows with verdicts in their references, and what a record says of the judge; None if nothing was asked.

        Raises:
            UserError: a verdict is missing; the next run asks for the rest.
        """
        ...


@dataclass(frozen=True)
class Identity:
    """What a record says of a model.

    Attributes:
        source: Where it came from, as given.
        name: In tables and folders.
        weights: Digest of all tensors.
        dtype: Of the parameters; with autocast, what it computes in too.
        parameters: Their number.
    """

    source: str
    name: str
    weights: str
    dtype: str
    parameters: int

    @classmethod
    def of(cls, net: MultimodalLM, source: str = "", name: str = "") -> Identity:
        """Reads all weights once: of a large model make it once, not for each task."""
        first = next(net.parameters())
        dtype = str(first.dtype).removeprefix("torch.")
        if torch.is_autocast_enabled(first.device.type):
            dtype += " autocast " + str(torch.get_autocast_dtype(first.device.type)).removeprefix("torch.")
        return cls(
            source, name or Path(source).name, weights_digest(net), dtype, sum(p.numel() for p in net.parameters())
        )


def evaluate_task(
    task: Task,
    model: LoadedModel,
    out: Path | None = None,
    *,
    batch_size: int = 8,
    limit: int | None = None,
    indices: Sequence[int] | None = None,
    max_tiles: int | None = None,
    identity: Identity | None = None,
    engine: Engine | None = None,
    ranks: Ranks | None = None,
    progress: ProgressLine | None = None,
    judge: Judge | None = None,
    force: bool = False,
) -> Result:
    """Asks a model a task's examples and scores the answers.

    Greedy answers of mode generate depend on batch size, order and ranks no more than floating-point sums do: not in
    fp32 in practice, at near-ties in bf16. Likelihoods and perplexities do not depend on them at all.

    Args:
        task: The benchmark.
        model: The model; its net is left in the mode (train or eval) it came in.
        out: Folder of the task's files, continued where an earlier run was cut off; None keeps answers in memory.
        batch_size: Prompts at once, of mode generate.
        limit: The first so many examples.
        indices: These examples, in place of `limit`.
        max_tiles: Image budget; None takes the task's, else the model's.
        identity: Of the model, see Identity.of.
        engine: To be used; None makes one.
        ranks: This process and the others that evaluate with it; None finds them (torch.distributed, torchrun).
        progress: Where a line of progress goes, from the first rank; None is silent.
        judge: Scores what the task's rules cannot, where the task has a judge; None: rules alone.
        force: Set aside what an earlier run left in `out`.

    Returns:
        The result, on all ranks; its `rows` are the lines of answers.jsonl. A split without public answers has no
        figures, and no result.json.

    Raises:
        UserError: no example could be asked; pictures for a model that takes none; `out` holds answers of another
            model, prompt, or data; the task's files or its metric are wrong.
    """
    places = list(range(len(task)) if indices is None else indices)[:limit]
    if not places:
        raise UserError(f"task {task.name}: has no examples")
    metric, net = new_metric(task), model.net
    _check(task, metric, model, places[0])
    ranks = Ranks.joined() if ranks is None else ranks
    identity = identity or Identity.of(net)
    budget = max_tiles or task.max_tiles or model.trained_tiles or model.max_tiles or MAX_TILES
    decoding: dict[str, Any] = {}
    if task.mode == "generate":
        decoding = {
            "max_new_tokens": task.decoding.max_new_tokens,
            "stop": list(task.decoding.stop),
            "temperature": 0,
        }
    made_by = {
        "task": task.name,
        "weights": identity.weights,
        "dtype": identity.dtype,
        "prompt_digest": task.prompt_digest,
        "data_fingerprint": task.data_fingerprint,
        "mode": task.mode,
        "decoding": decoding,
        "max_tiles": budget,
    }
    begun, was_training = time.monotonic(), net.training
    try:
        engine = engine or Engine(net, model.processor)
        asking = Asking(task, places, model, engine, batch_size, budget)
        with AnswerFolder(out, ranks, force) as answers:
            answers.claim(made_by)
            before = answers.before
            ids = [task[place].id for place in places]
            answers.check(ids)
            shown = Progress(
                progress if ranks.first else None, task, metric if task.scored else None, len(places), ranks
            )
            if before:
                shown.tell(f"{len(before)} of {len(places)} answers are there; goes on from there")
            if not task.scored:
                shown.tell(f"the answers of split {task.split} are not public: answers are written, there is no score")
            shown.add(list(before.values()), new=False)
            for rows in asking.rows(before.__contains__, ranks):
                answers.append(rows)
                shown.add(rows)
            shown.end()
            found = answers.all_rows()
            seconds = time.monotonic() - begun
            rows = [found[key] for key in ids]
            errors = sum("error" in row for row in rows)
            figures: dict[str, float] = {}
            judged: dict[str, Any] | None = None
            if task.scored:
                metric = new_metric(task)
                judged_rows, judged = _judged(judge, task, metric, rows, ranks)
                add_rows(task, metric, judged_rows)
                figures = metric.compute()
                rows = with_scores(task, metric, rows, judged_rows)
            answers.finish(rows)
    finally:
        net.train(was_training)
    if errors == len(rows):
        message = f"task {task.name}: none of {errors} examples could be asked, the first because: {rows[0]['error']}"
        raise UserError(message) if ranks.first else FirstRankFailed(message)
    result = Result(
        task=task.name,
        about=task.about,
        split=task.split,
        metric={"name": metric.name, "version": metric.version, "spec": dict(task.metric)},
        headline=metric.headline,
        figures=figures,
        matcher="judge" if judged else "rules",
        judge=judged,
        n=len(counted(task, rows)),
        unmatched=int(figures.get("unmatched", 0)),
        errors=errors,
        decoding=decoding,
        max_tiles=budget if any(row["images"] for row in rows) else None,
        prompt_digest=task.prompt_digest,
        data_fingerprint=task.data_fingerprint,
        model=asdict(identity),
        code={"mmframe": mmframe.__version__, **code_revision(), "torch": torch.__version__},
        limit=None if len(places) == len(task) else len(places),
        seconds=round(seconds, 1),
        device=device_name(),
        ranks=ranks.count,
        batch_size=batch_size,
        extra={"answered_before": sum(key in before for key in ids)} if before else {},
        rows=rows,
    )
    if out is not None and task.scored and ranks.first:
        result.write(out)
    return result


def _check(task: Task, metric: TaskMetric, model: LoadedModel, place: int) -> None:
    """Looks at one example before any work is done.

    Raises:
        UserError: it has pictures and the model takes none, or its reference lacks what the metric needs.
    """
    example = task[place]
    if example.images and model.net.patch_embedder is None:
        raise UserError(f"task {task.name}: shows pictures, but the model is a text-only LLM without patch embedder")
    added = ("tokens",) if task.mode == "perplexity" else ()
    missing = [key for key in metric.needs if key not in example.reference and key not in added]
    if missing and task.scored:
        raise UserError(
            f"task {task.name}: metric {metric.name} needs {', '.join(missing)}, which the reference of example "
            f"{example.id!r} has not"
        )


def _judged(
    judge: Judge | None, task: Task, metric: TaskMetric, rows: list[Row], ranks: Ranks
) -> tuple[list[Row], dict[str, Any] | None]:
    """Rows with verdicts: the first rank asks the judge, all get what it said."""
    if judge is None or task.judge is None:
        return rows, None
    found: list[Any] = []
    ranks.on_first(lambda: found.append(judge.apply(task, metric, rows)))
    return ranks.gather(found)[0][0]


def score_of(result: Result) -> str:
    """The headline figure as tables show it."""
    value = result.figures.get(result.headline, math.nan)
    return "-" if math.isnan(value) else f"{value:.2f}"
