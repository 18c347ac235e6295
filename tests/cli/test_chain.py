"""A chain of stages in real processes: stopped, killed, continued; the result is that of an uninterrupted run."""

import json
import os
import signal
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmframe.callbacks.jsonl import read_metrics
from mmframe.cli.main import main
from mmframe.cli.run_state import chain_stages, look

from .conftest import start

pytestmark = pytest.mark.timeout(1500)  # against a hang only: other jobs may leave these processes little of the CPU

# enough steps that a signal always comes in the middle
RECIPE = """
base: toy/_common
checkpoint_every: 3
model:
  router: {class_path: ModalityRouter, init_args: {experts_at: {ffn: all}}}
  freezing: {class_path: VisualParameters, init_args: {embedder_lr: 1e-3, experts_lr: 1e-3}}
trainer: {max_steps: 60, limit_val_batches: 0, log_every_n_steps: 1}
stages:
  one: {}
  two: {model: {freezing: {class_path: Everything, init_args: {text_lr: 1e-3, embedder_lr: 1e-3, experts_lr: 1e-3}}}}
"""
STAGES = ["one", "two"]


def wait_for(condition, process):
    deadline = time.monotonic() + 400
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps_of(folder):
    file = folder / "metrics.jsonl"
    return file.read_text().count("\n") if file.is_file() else 0


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Runs the chain: SIGTERM in stage 1, SIGKILL in stage 2, then to the end; beside it without interruption."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "mine.yaml").write_text(RECIPE)
    words = ["fit", "--config", "mine.yaml", "--run-dir"]
    run = folder / "run"
    told = {}

    first = start(*words, run, cwd=folder)
    wait_for(lambda: steps_of(run / STAGES[0]) >= 5, first)
    first.send_signal(signal.SIGTERM)
    told["terminated"] = first.communicate(timeout=400)[0]
    told["terminated code"] = first.returncode
    told["states"] = [look(run / stage) for stage in STAGES]
    told["after"] = {f.name for f in (run / STAGES[0]).iterdir()}

    second = start(*words, run, cwd=folder)
    wait_for(lambda: steps_of(run / STAGES[1]) >= 5 and (run / STAGES[1] / "checkpoints/last.ckpt").exists(), second)
    told["states"] += [look(run / stage) for stage in STAGES]
    os.killpg(second.pid, signal.SIGKILL)
    told["killed"] = second.communicate(timeout=400)[0]
    deadline = time.monotonic() + 30  # of the stage's process, a grandchild, only its output is known to be closed
    while (left := look(run / STAGES[1])).state == "running" and time.monotonic() < deadline:
        time.sleep(0.02)
    told["states"].append(left)

    third = start(*words, run, cwd=folder)
    told["finished"] = third.communicate(timeout=400)[0]
    told["finished code"] = third.returncode

    told["whole code"] = main([str(word) for word in ["fit", folder / "mine.yaml", "--run-dir", folder / "whole",
                               "--in-process", "--trainer.enable_progress_bar=false"]])  # fmt: skip
    return folder, told


def test_sigterm_stops_with_a_checkpoint_and_code_143(story):
    _, told = story
    assert told["terminated code"] == 143, told["terminated"]
    assert "stopped by SIGTERM; the same command continues it" in told["terminated"]
    assert "checkpoints" in told["after"] and not {"done.json", "weights.safetensors"} & told["after"]
    assert "Traceback" not in told["terminated"]


def test_who_watches_is_told_how_it_is(story):
    folder, told = story
    states = told["states"]
    assert [run.state for run in states] == ["stopped", "waiting", "done", "running", "dead"]
    assert (states[0].recipe, states[0].stage, states[0].steps) == ("mine", STAGES[0], 60)
    killed = json.loads((folder / "run" / STAGES[1] / "meta.json").read_text())["attempts"][0]["pid"]
    assert states[4].why == f"process {killed} is gone"
    assert chain_stages(folder / "run") == {"one": 60, "two": 60}
    assert [look(folder / "run" / stage).state for stage in STAGES] == ["done", "done"]


def test_the_chain_goes_on_where_it_was_cut_off(story):
    folder, told = story
    assert told["finished code"] == 0, told["finished"]
    assert f"[1/2 {STAGES[0]}] was cut off; continues from" in told["killed"]
    assert f"[1/2 {STAGES[0]}] done, skipped" in told["finished"]
    assert f"[2/2 {STAGES[1]}] was cut off; continues from" in told["finished"]
    for stage in STAGES:
        assert json.loads((folder / "run" / stage / "done.json").read_text())["steps"] == 60
    assert "Traceback" not in told["finished"] + told["killed"]


def test_the_continued_run_is_the_uninterrupted_run_bit_for_bit(story):
    folder, told = story
    assert told["whole code"] == 0
    for stage in STAGES:
        one, other = (load_file(folder / name / stage / "weights.safetensors") for name in ("run", "whole"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), stage
    for name in ("train/loss", "loss/all", "tokens/text", "lr/experts"):
        logged = [[row[name] for row in read_metrics(folder / n / STAGES[1])] for n in ("run", "whole")]
        assert logged[0] == logged[1] and len(logged[0]) == 60


def test_metrics_of_all_attempts_are_kept(story):
    folder, _ = story
    rows = [json.loads(line) for line in (folder / "run" / STAGES[0] / "metrics.jsonl").read_text().splitlines()]
    assert {row["attempt"] for row in rows} == {1, 2}
    attempts = json.loads((folder / "run" / STAGES[0] / "meta.json").read_text())["attempts"]
    assert [attempt["resumed"] for attempt in attempts] == [False, True]
    assert not (folder / "run" / STAGES[0] / "config.1.yaml").exists()  # the same configuration is written once


def test_each_stage_starts_from_the_weights_before(story):
    folder, _ = story
    run = folder / "run"
    for before, stage in zip(STAGES, STAGES[1:], strict=False):
        meta = json.loads((run / stage / "meta.json").read_text())
        assert meta["started_from"] == json.loads((run / before / "done.json").read_text())["weights_id"]
        assert meta["recipe"] == "mine" and meta["stage"] == stage
        assert "init_from" not in yaml.safe_load((run / stage / "recipe.yaml").read_text())["model"]


@pytest.fixture
def finished(story, elsewhere, monkeypatch):
    """The finished chain of the story; used by tests that change nothing in it."""
    monkeypatch.chdir(story[0])
    return ["fit", "--config", "mine.yaml", "--run-dir", "run"]


def test_a_finished_chain_has_nothing_to_do(cli, finished):
    code, _, err = cli(*finished)
    assert code == 0 and err.count("done, skipped") == 2
    code, out, _ = cli(*finished, "--dry-run")
    assert code == 0 and out.count("would be skipped") == 2 and out.count("60 steps") == 2


def test_another_recipe_in_the_same_directory_is_refused(fails, cli, finished):
    line = fails(*finished, "--model.router.init=zero")
    assert "one: holds a run (done) of another recipe; they differ in model.router.init_args.init;" in line
    assert "--run-dir" in line and "--force" in line
    code, out, _ = cli(*finished, "--model.router.init=zero", "--force", "--dry-run")
    assert code == 0 and out.count("would run") == 2


def test_weights_of_an_older_run_are_noticed(fails, finished, story):
    done = story[0] / "run" / STAGES[0] / "done.json"
    before = done.read_text()
    done.write_text(json.dumps({**json.loads(before), "weights_id": "of a newer run"}))
    try:
        assert "two: holds a run (done) that started from older weights" in fails(*finished)
    finally:
        done.write_text(before)


def test_one_stage_needs_the_one_before(fails, cli):
    line = fails("fit", "--config", "toy/evip_pp", "--stage", "s1_3_alignment")
    assert (
        "stage s1_3_alignment starts from the weights of s1_2_semantic, but " in line
        and "--model.init_from=FILE" in line
    )
    code, out, _ = cli("fit", "--config", "toy/evip_pp", "--stage", "s1_3_alignment", "--dry-run")
    assert code == 0 and len(out.splitlines()) == 2


def test_one_stage_alone_and_again_with_force(cli, story, elsewhere):
    weights = story[0] / "run" / "one" / "weights.safetensors"
    words = ["fit", "--config", story[0] / "mine.yaml", "--stage=two", f"--model.init_from={weights}", "--run-dir=r",
             "--trainer.max_steps=2"]  # fmt: skip
    code, _, err = cli(*words)
    assert code == 0, err
    assert {folder.name for folder in (elsewhere / "r").iterdir() if folder.is_dir()} == {"two"}
    code, _, err = cli(*words, "--trainer.max_steps=3", "--force")
    assert code == 0, err
    assert {folder.name for folder in (elsewhere / "r").iterdir() if folder.is_dir()} == {"two", "two.old-1"}
    assert json.loads((elsewhere / "r" / "two" / "done.json").read_text())["steps"] == 3


def test_a_stage_that_fails_stops_the_chain(elsewhere):
    process = start("fit", "toy/evip_pp", "--model.init_from=missing.safetensors", cwd=elsewhere)
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 2
    assert "mmframe: error: init_from: missing.safetensors does not exist" in output and "Traceback" not in output
    assert "s1_2_semantic" not in output
