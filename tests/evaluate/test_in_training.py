"""Tasks asked in training: what they give, and that training does not notice."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from mmframe.callbacks import examiner
from mmframe.callbacks.answer_sheet import AnswerSheet
from mmframe.callbacks.jsonl import read_metrics
from mmframe.callbacks.task_scores import Retention, TaskScores
from mmframe.callbacks.undisturbed import undisturbed
from mmframe.cli.main import main
from mmframe.errors import UserError
from mmframe.evaluate.run import evaluate_task
from mmframe.evaluate.subset import subset
from mmframe.loading import load
from mmframe.tasks import load_task
from tests.evaluate.ranks_in_training import ask_two_ranks, scores_of_a_run
from tests.evaluate.tasks import MadeTask, question, questions

STAGES = ("s1_1_concept", "s1_2_semantic", "s1_3_alignment", "s2_instruction")
FLAGS = (
    "--in-process",
    "--trainer.max_steps=4",
    "--trainer.log_every_n_steps=1",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.callbacks.0.every=3",
    "--trainer.callbacks.1.every=3",
    "--trainer.callbacks.1.limit=6",
)


def fit(recipe: str, folder: Path, *words: str) -> int:
    flags = [flag for flag in FLAGS if "callbacks" not in flag or recipe == "toy/scores"]
    return main(["fit", "--config", recipe, "--run-dir", str(folder), *flags, *words])


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy chain of four stages with both callbacks; evaluations at steps 0, 3 and 4 of each."""
    folder = tmp_path_factory.mktemp("chain")
    assert fit("toy/scores", folder) == 0
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first stage without callbacks."""
    folder = tmp_path_factory.mktemp("plain")
    assert fit("toy/evip_pp", folder, "--stage", STAGES[0]) == 0
    return folder / STAGES[0]


def asked_at(run: Path, key: str) -> list[int]:
    return [row["step"] for row in read_metrics(run) if key in row]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# ---- a run with them, and the same without --------------------------------------------------------------------------


def test_training_does_not_notice(chain: Path, plain: Path) -> None:
    """Weights, losses and counted FLOPs to the last bit, in the middle of gradient accumulation."""
    ours, theirs = load(chain / STAGES[0]).net.state_dict(), load(plain).net.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    for key in ("train/loss", "train/flops", "grad_norm/experts"):
        found = [[row[key] for row in read_metrics(run) if key in row] for run in (chain / STAGES[0], plain)]
        assert found[0] == found[1] and found[0], key


def test_scores_stand_at_their_steps_and_in_the_end(chain: Path) -> None:
    run = chain / STAGES[0]
    for key in ("tasks/toy_shapes/accuracy", "retention/toy_text/perplexity", "tasks/time_share", "tasks/seconds"):
        assert asked_at(run, key) == [0, 3, 4], key
    done = json.loads((run / "done.json").read_text())
    last = read_metrics(run)[-1]
    assert done["metrics"]["retention/toy_text/perplexity"] == last["retention/toy_text/perplexity"]
    assert done["totals"]["tasks_seconds"] > 0 and 0 < last["tasks/time_share"] < 100
    records = lines(run / "tasks" / "results.jsonl")
    assert [record["step"] for record in records] == [0, 3, 4] and records[0]["result"]["n"] == 16
    assert len({record["result"]["model"]["weights"] for record in records}) == 3  # each of its own weights


def test_the_last_score_is_that_of_the_weights_handed_on(chain: Path) -> None:
    run = chain / STAGES[3]
    model, last = load(run), read_metrics(run)[-1]
    for name, group, limit in (("toy_shapes", "tasks", 16), ("toy_text", "retention", 6)):
        task = load_task(name)
        result = evaluate_task(task, model, indices=subset(task, limit))
        assert last[f"{group}/{name}/{result.headline}"] == result.score
        assert lines(run / group / "results.jsonl")[-1]["result"]["model"]["weights"] == result.model["weights"]


def test_answers_of_a_few_examples_over_time(chain: Path) -> None:
    folder = chain / STAGES[0] / "tasks"
    rows = lines(folder / "samples.jsonl")
    assert [row["step"] for row in rows] == [0] * 4 + [3] * 4 + [4] * 4
    assert len({row["id"] for row in rows}) == 4
    page = (folder / "samples.html").read_text()
    assert page.count("data:image/jpeg") == 4 and all(f"<th>step {step}</th>" in page for step in (0, 3, 4))
    accumulated = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = accumulated.EventAccumulator(str(chain / STAGES[0]))
    board.Reload()
    assert [event.step for event in board.Scalars("tasks/toy_shapes/accuracy")] == [0, 3, 4]
    assert "tasks/toy_shapes/answers/text_summary" in board.Tags()["tensors"] and len(board.Tags()["images"]) == 4


# ---- what is left of language ---------------------------------------------------------------------------------------


def test_a_frozen_text_path_keeps_every_digit_and_a_trained_one_does_not(chain: Path) -> None:
    """The headline of language retention: S1.1 and S1.2 train visual parameters alone, S2 trains everything."""
    of = {stage: [row for row in read_metrics(chain / stage) if "retention/seconds" in row] for stage in STAGES}
    scores = ("toy_text/perplexity", "toy_choice/accuracy")
    start = of[STAGES[0]][0]
    for stage in STAGES[:2]:
        for row in of[stage]:
            assert all(row[f"retention/{key}"] == start[f"retention/{key}"] for key in scores)
            assert row["retention/toy_text/delta"] == row["retention/toy_choice/delta"] == 0
            assert row["retention/toy_text/identical"] == 1
    digests = {
        stage: [line["digest"] for line in lines(chain / stage / "retention/results.jsonl") if line["digest"]]
        for stage in STAGES
    }
    assert len({*digests[STAGES[0]], *digests[STAGES[1]], digests[STAGES[2]][0]}) == 1
    last = of[STAGES[3]][-1]
    assert last["retention/toy_text/identical"] == 0 and last["retention/toy_text/delta"] != 0
    assert of[STAGES[3]][0]["retention/toy_text/identical"] == 1  # against the start of its own stage
    assert len(set(digests[STAGES[3]])) == 3


def test_against_another_model(chain: Path, tmp_path: Path) -> None:
    """S2 beside the model that the chain began with: the start of S1.1, which has the same text path as its end."""
    words = ["--stage", STAGES[3], f"--trainer.callbacks.1.against={chain / STAGES[0]}", "--trainer.max_steps=1"]
    words.append(f"--model.init_from={chain / STAGES[3] / 'weights.safetensors'}")
    assert fit("toy/scores", tmp_path, *words) == 0
    first = read_metrics(tmp_path / STAGES[3])[0]
    began = read_metrics(chain / STAGES[0])[0]["retention/toy_text/perplexity"]
    ended = read_metrics(chain / STAGES[3])[-1]["retention/toy_text/perplexity"]
    assert first["retention/toy_text/perplexity"] == ended
    assert first["retention/toy_text/delta"] == ended - began and first["retention/toy_text/identical"] == 0


# ---- runs that are stopped ------------------------------------------------------------------------------------------


class StopOnce(Callback):
    """Sends a SIGTERM at the end of a batch, unless the run was stopped before."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *given: Any) -> None:
        if given[-1] == self.batch and trainer.ckpt_path is None:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    "batch, before", [(5, [0]), (6, [0, 3])], ids=["before its evaluation", "after the evaluation of its checkpoint"]
)
def test_a_run_that_was_stopped_asks_every_step_once(
    batch: int, before: list[int], chain: Path, tmp_path: Path
) -> None:
    """Batch 5 ends step 3, where tasks are due: they wait for the run to go on. Batch 6 is in the middle of step 4:
    the checkpoint is that of step 3, which knows that its tasks were asked."""
    stop = f"--trainer.callbacks+={{class_path: {__name__}.StopOnce, init_args: {{batch: {batch}}}}}"
    words = ["--stage", STAGES[0], stop, "--checkpoint_every=3"]
    run = tmp_path / STAGES[0]
    assert fit("toy/scores", tmp_path, *words) == 143
    assert asked_at(run, "tasks/seconds") == asked_at(run, "retention/seconds") == before
    assert fit("toy/scores", tmp_path, *words) == 0
    for group, tasks in (("tasks", 1), ("retention", 2)):
        assert [line["step"] for line in lines(run / group / "results.jsonl")] == sorted([0, 3, 4] * tasks)
    whole = read_metrics(chain / STAGES[0])
    for key in ("tasks/toy_shapes/accuracy", "retention/toy_text/perplexity", "retention/toy_text/delta"):
        assert [row[key] for row in read_metrics(run) if key in row] == [row[key] for row in whole if key in row]
    ours, theirs = load(run).net.state_dict(), load(chain / STAGES[0]).net.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---- several ranks --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_ranks_share_the_examples_and_have_one_score(tmp_path: Path) -> None:
    """Of text tasks, whose path is frozen here: so one process has the same scores, whatever the steps' sums are."""
    tasks = ["toy_text", "toy_choice"]
    alone = scores_of_a_run(tmp_path / "alone", tasks)
    first, second = ask_two_ranks(tmp_path, tasks)
    assert first["scores"] == second["scores"] == alone["scores"]
    assert first["scores"]["tasks/toy_text/identical"] == 1
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    records = lines(tmp_path / "tasks" / "results.jsonl")
    assert [record["step"] for record in records] == [0, 0, 1, 1, 2, 2]
    assert {record["result"]["ranks"] for record in records} == {2}


# ---- the parts ------------------------------------------------------------------------------------------------------


def test_generators_and_modes_are_as_before() -> None:
    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    module[1].eval()
    modes = [part.training for part in module.modules()]

    def drawn() -> list[float]:
        return [float(torch.rand(1)), random.random(), float(np.random.rand())]

    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    wanted = drawn()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    with pytest.raises(KeyError), undisturbed(module):
        drawn()
        assert not torch.is_grad_enabled()
        module.eval()
        raise KeyError
    assert drawn() == wanted and torch.is_grad_enabled()
    assert [part.training for part in module.modules()] == modes


def test_the_part_of_a_task_depends_on_ids_alone(tmp_path: Path) -> None:
    task = questions(tmp_path, 40)

    def ids(of: MadeTask, limit: int | None) -> list[str]:
        return [of[index].id for index in subset(of, limit)]

    few, more = ids(task, 8), ids(task, 20)
    assert len(few) == 8 and len(more) == 20 and set(few) < set(more)
    turned = MadeTask("turned", task.examples[::-1])
    assert sorted(ids(turned, 8)) == sorted(few) and ids(turned, 8) == [e.id for e in turned.examples if e.id in few]
    assert ids(task, None) == ids(task, 40) == ids(task, 99) == [example.id for example in task]
    assert few != [example.id for example in task][:8]


def test_what_is_scored_together_is_asked_together() -> None:
    groups = [question(f"q{n}", "why", answers=["a"], group=n // 4) for n in range(40)]
    chosen = subset(MadeTask("rotations", groups), 10)
    assert len(chosen) == 8 and len({index // 4 for index in chosen}) == 2
    assert len(subset(MadeTask("rotations", groups), 2)) == 4
    pictures = [question(f"q{n}", "why", answers=["a"], category=f"c{n % 2}", image="1.png") for n in range(8)]
    assert len(subset(MadeTask("pictures", pictures), 5)) == 4  # an equal name in another category is another picture


def test_the_page_of_answers(tmp_path: Path) -> None:
    examples = [question("<1>", "what <b>is</b> it?"), question("2", "and this?")]
    sheet = AnswerSheet(tmp_path, {"made": examples})

    def row(step: int, key: str, answer: Any, **score: float) -> dict[str, Any]:
        return {"step": step, "task": "made", "id": key, "answer": answer, "reference": {}, "score": score}

    sheet.add([row(0, "<1>", "<script>", score=0.0), row(0, "2", [[-1.5, 1], [-2.5, 2]], accuracy=1.0)])
    with open(tmp_path / "samples.jsonl", "a") as file:
        file.write('{"step": 9, "ta')  # cut off by a kill
    sheet.add([row(10, "<1>", "half", score=0.5), row(10, "2", 12.345)])
    sheet.add([row(10, "<1>", "blue", score=1.0)])  # made again by the run that went on
    page = (tmp_path / "samples.html").read_text()
    for shown in ("<td class=wrong>&lt;script&gt;</td><td class=right>blue</td>", "what &lt;b&gt;is&lt;/b&gt; it?",
                  "<td class=right>0: -1.50 nats\n1: -2.50 nats</td><td class=none>12.35 nats</td>"):  # fmt: skip
        assert shown in page, shown
    assert "half" not in page and "step 9" not in page and page.count("<th>step") == 2


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, said",
    [
        (dict(tasks=[], every=1), "name at least one"),
        (dict(tasks=["toy_text", "toy_text"], every=1), "each once"),
        (dict(tasks=["toy_text"], every=0), "every=0 must be at least 1"),
        (dict(tasks=["toy_text"], every=1, limit=0), "limit=0 must be at least 1"),
        (dict(tasks=["toy_text"], every=1, samples=-1), "samples=-1 must be at least 0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], said: str) -> None:
    for kind in (TaskScores, Retention):
        with pytest.raises(UserError, match=said):
            kind(**arguments)


def test_mistakes_are_one_line_before_the_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = {
        "--trainer.callbacks.0.evry=3": "did you mean 'every'",
        "--trainer.callbacks+=TaskScore": "did you mean 'TaskScores'",
        "--trainer.callbacks.0.tasks=[toy_shape]": "did you mean 'toy_shapes'",
        "--trainer.callbacks.0.group=retention": "give one of them another `group`",
        "--trainer.callbacks.1.against=nowhere": "nowhere",
    }
    for word, said in words.items():
        assert fit("toy/scores", tmp_path / "r", "--stage", STAGES[0], "--force", word) == 2, word
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("mmframe: error: ") and said in told, told


def test_what_cannot_be_asked_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class FSDPStrategy:
        pass

    class Trainer:
        strategy, callbacks = FSDPStrategy(), []

    callback = TaskScores(["toy_text"], every=1)
    with pytest.raises(UserError, match="FSDPStrategy.*`mmframe evaluate`"):
        callback.setup(Trainer(), None, "fit")  # type: ignore[arg-type]
    callback.setup(Trainer(), None, "validate")  # type: ignore[arg-type]  # nothing to do
    hidden = MadeTask("hidden", [question("1", "why")], scored=False)
    monkeypatch.setattr(examiner, "load_task", lambda name, data: hidden)
    with pytest.raises(UserError, match="task hidden: its answers are not public"):
        examiner.Examiner(["hidden"], None, None, 1, 1, digests=False)
