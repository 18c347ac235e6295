"""evaluate_task: one model, one task, one result. What the command line, `lightning test` and callbacks call."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

import mmframe
from mmframe.cli.progress_line import ProgressLine
from mmframe.engine import Engine
from mmframe.errors import UserError
from mmframe.evaluate.asking import Asking
from mmframe.evaluate.folder import AnswerFolder
from mmframe.evaluate.identity import Identity
from mmframe.evaluate.progress import Progress
from mmframe.evaluate.ranks import FirstRankFailed, Ranks
from mmframe.evaluate.record import Result
from mmframe.evaluate.scoring import Row, add_rows, counted, new_metric, with_scores
from mmframe.evaluate.submission import write_submission
from mmframe.loading import LoadedModel
from mmframe.metrics import TaskMetric
from mmframe.provenance import code_revision, device_name
from mmframe.tasks.task import Task

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
    ids, pictures = _looked_over(task, places)
    ranks = Ranks.joined() if ranks is None else ranks
    identity = identity or Identity.of(net)
    budget = max_tiles or task.max_tiles or model.trained_tiles or model.max_tiles or MAX_TILES
    conditions = _conditions(task, budget)
    begun, was_training = time.monotonic(), net.training
    try:
        net.eval()
        engine = engine or Engine(net, model.processor)
        asking = Asking(task, places, ids, pictures, model, engine, batch_size, budget)
        with AnswerFolder(out, ranks, force) as answers:
            answers.claim({"task": task.name, "weights": identity.weights, "dtype": identity.dtype, **conditions})
            answers.check(ids)
            shown = Progress(progress if ranks.first else None, task, metric, len(places), ranks)
            shown.start(list(answers.before.values()))
            for rows in asking.rows(answers.before.keys(), ranks):
                answers.append(rows)
                shown.add(rows)
            shown.end()
            found = answers.all_rows()
            seconds = time.monotonic() - begun
            scored = _scored(task, [found[key] for key in ids], judge, ranks)
            answers.finish(scored.rows)
            if out is not None and ranks.first and (file := write_submission(task, places, scored.rows, out)):
                shown.tell(f"its server takes {file}")
    finally:
        net.train(was_training)
    errors = sum("error" in row for row in scored.rows)
    if errors == len(places):
        first = scored.rows[0]["error"]
        message = f"task {task.name}: none of {errors} examples could be asked, the first because: {first}"
        raise UserError(message) if ranks.first else FirstRankFailed(message)
    result = Result(
        task=task.name,
        about=task.about,
        split=task.split,
        metric={"name": metric.name, "version": metric.version, "spec": dict(task.metric)},
        headline=metric.headline,
        figures=scored.figures,
        matcher="judge" if scored.judge else "rules",
        judge=scored.judge,
        n=len(counted(task, scored.rows)),
        unmatched=int(scored.figures.get("unmatched", 0)),
        errors=errors,
        decoding=conditions["decoding"],
        max_tiles=budget if any(row["images"] for row in scored.rows) else None,
        prompt_digest=task.prompt_digest,
        data_fingerprint=task.data_fingerprint,
        model=asdict(identity),
        code={"mmframe": mmframe.__version__, **code_revision(), "torch": torch.__version__},
        limit=None if len(places) == len(task) else len(places),
        seconds=round(seconds, 1),
        device=device_name(),
        ranks=ranks.count,
        batch_size=batch_size,
        extra={"answered_before": len(answers.before)} if answers.before else {},
        rows=scored.rows,
    )
    if out is not None and task.scored and ranks.first:
        result.write(out)
    return result


def _looked_over(task: Task, places: Sequence[int]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Ids and names of the pictures; that each example can be built is found out here, before any is asked."""
    ids, pictures = [], []
    for place in places:
        example = task[place]
        ids.append(example.id)
        pictures.append(tuple(map(str, example.images)))
    twice = [key for key, count in Counter(ids).items() if count > 1]
    if twice:
        raise UserError(f"task {task.name}: {len(twice)} ids stand twice, {twice[0]!r} the first")
    return ids, pictures


def _conditions(task: Task, max_tiles: int) -> dict[str, Any]:
    """What, beside the model, makes the answers: a run that is continued must have the same."""
    decoding: dict[str, Any] = {}
    if task.mode == "generate":
        stop = list(task.decoding.stop)
        decoding = {"max_new_tokens": task.decoding.max_new_tokens, "stop": stop, "temperature": 0}
    return {
        "mode": task.mode,
        "decoding": decoding,
        "max_tiles": max_tiles,
        "prompt_digest": task.prompt_digest,
        "data_fingerprint": task.data_fingerprint,
    }


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


class _Scored(NamedTuple):
    rows: list[Row]
    figures: dict[str, float]
    judge: dict[str, Any] | None


def _scored(task: Task, rows: list[Row], judge: Judge | None, ranks: Ranks) -> _Scored:
    """Figures of all rows, and each row with its score. The first rank asks the judge, all get what it said."""
    if not task.scored:
        return _Scored(rows, {}, None)
    metric, seen, told = new_metric(task), rows, None
    if judge is not None and task.judge is not None:
        verdicts: list[Any] = []
        ranks.on_first(lambda: verdicts.append(judge.apply(task, metric, rows)))
        seen, told = ranks.gather(verdicts)[0][0]
    add_rows(task, metric, seen)
    return _Scored(with_scores(task, metric, rows, seen), metric.compute(), told)
