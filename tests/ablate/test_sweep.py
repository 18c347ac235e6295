"""A sweep in real processes: killed in the middle, continued by the same command, measured again without training.

It is the grid of the README, with longer runs so that the kill comes in the middle of one.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmframe.ablate.grid import read_grid
from mmframe.ablate.plan import plan
from mmframe.ablate.run_folder import RunFolder
from mmframe.ablate.survey import Survey
from mmframe.cli.main import main
from mmframe.cli.run_dir import read_json
from tests.cli.conftest import start

pytestmark = pytest.mark.timeout(1500)  # against a hang only: other jobs may leave these processes little of the CPU

TOY = Path(__file__).parents[2] / "experiments" / "ablations" / "toy.yaml"
TEXTS = ["a square is red", "the bar is blue", "green circles are rare"]


def wait_for(condition: Any, process: Any) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def evaluators(count: int) -> dict[str, Any]:
    return {"text": {"class_path": "TextLoss", "init_args": {"texts": str(Path("texts.jsonl")), "count": count}}}


def write_grid(folder: Path, count: int) -> None:
    grid = yaml.safe_load(TOY.read_text())
    changed = {"budget": {"samples": 320}, "evaluators": evaluators(count), "metrics": ["val/loss", "text.nll"]}
    (folder / "grid.yaml").write_text(yaml.safe_dump({**grid, **changed}, sort_keys=False))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three runs are done by themselves; the sweep does the fourth and is killed in the middle of it; then the same
    command again, to the end."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    write_grid(folder, 2)
    before = Path.cwd()
    os.chdir(folder)
    out = Path("out")
    told: dict[str, Any] = {}
    alone = ("none-s0", "ffn-s0", "ffn-s1")
    told["alone"] = [main(["ablate", "grid.yaml", f"--out={out}", f"--run={name}"]) for name in alone]
    grid = read_grid(Path("grid.yaml"))
    folders = {run.id: RunFolder(out, run) for run in plan(grid, Survey(out / "survey").ask)}
    told["weights"] = {name: read_json(folders[name].last.done)["weights_id"] for name in alone}
    words = ["ablate", "grid.yaml", f"--out={out}", "--jobs=1"]
    first, cut = start(*words, cwd=folder), folders["none-s1"]
    wait_for(lambda: cut.last.last.exists() and cut.progress().done >= 6, first)
    first.kill()
    told["killed"] = first.communicate(timeout=60)[0]
    told["state"] = {name: f.finished(grid.evaluators) for name, f in folders.items()}
    again = start(*words, "--resume", cwd=folder)
    told["continued"] = again.communicate(timeout=400)[0]
    told["code"] = again.returncode
    yield folder, grid, folders, told
    os.chdir(before)


def test_finished_runs_are_not_repeated_and_the_cut_off_one_goes_on(story: Any) -> None:
    _, _, folders, told = story
    assert told["state"] == {"none-s0": True, "none-s1": False, "ffn-s0": True, "ffn-s1": True}
    assert told["code"] == 0, told["continued"]
    for output in (told["killed"], told["continued"]):
        assert "4 runs, 3 of them finished; 1 at once" in output and output.count(" starts (") >= 1
        assert not any(f"{name} starts" in output for name in told["weights"])
    assert "none-s1 done in" in told["continued"]
    assert {name: read_json(folders[name].last.done)["weights_id"] for name in told["weights"]} == told["weights"]
    attempts = read_json(folders["none-s1"].last.meta)["attempts"]
    assert [attempt["resumed"] for attempt in attempts] == [False, True]


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(story: Any, tmp_path: Path) -> None:
    folder, _, folders, _ = story
    shutil.copytree(folder / "out" / "survey", tmp_path / "survey")
    assert main(["ablate", "grid.yaml", f"--out={tmp_path}", "--run=none-s1", "--keep"]) == 0
    whole = next((tmp_path / "runs").iterdir())
    one, other = load_file(whole / "weights.safetensors"), load_file(folders["none-s1"].last.weights)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (whole / "checkpoints").is_dir() and not (folders["none-s1"].path / "checkpoints").exists()
    totals = [read_json(path / "done.json")["totals"] for path in (whole, folders["none-s1"].path)]
    for name in ("tokens", "samples", "flops"):
        assert totals[0][name] == totals[1][name], "counted over both attempts"


def test_single_runs_are_what_slurm_would_start(story: Any) -> None:
    _, grid, folders, told = story
    assert told["alone"] == [0, 0, 0] and all(f.finished(grid.evaluators) for f in folders.values())


def test_the_results_are_there(story: Any) -> None:
    folder, _, _, told = story
    names = {file.name for file in (folder / "out" / "grid").iterdir()}
    assert names == {"results.csv", "curves.csv", "report.md", "curves.png", "deltas.png"}
    report = (folder / "out" / "grid" / "report.md").read_text()
    assert report in told["continued"], "the sweep prints its table"
    assert "| variant | n | val/loss ↓ | Δ | text.nll ↓ | Δ |  |" in report and "| ffn | 2 | " in report
    assert "| ffn | 180,512 | 180,512 | 131,360 |" in report and "| 320 |" in report, "budget and samples really seen"


def test_seeds_are_paired(story: Any) -> None:
    """Under one seed all variants see the same rows in the same order: before the first step the losses are equal."""
    _, _, folders, _ = story
    first = {name: json.loads((f.path / "metrics.jsonl").read_text().splitlines()[0]) for name, f in folders.items()}
    for seed in (0, 1):
        # an expert that is a copy changes nothing before it has learnt
        assert first[f"none-s{seed}"]["train/loss"] == pytest.approx(first[f"ffn-s{seed}"]["train/loss"], rel=1e-5)
        assert first[f"none-s{seed}"]["train/tokens"] == first[f"ffn-s{seed}"]["train/tokens"]
    assert first["none-s0"]["train/loss"] != first["none-s1"]["train/loss"]


def test_with_nothing_left_to_do_the_same_command_only_reports(story: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "grid.yaml", "--out=out"]) == 0
    out, err = capfd.readouterr()
    assert "4 runs, 4 of them finished" in err and " starts (" not in err and "| ffn | 2 |" in out
    assert main(["ablate", "grid.yaml", "--out=out", "--dry-run"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert sum("finished; 40 steps; parameters" in line for line in lines) == 4
    assert "    model.router.class_path: SharedRouter -> ModalityRouter" in lines


def test_a_changed_evaluator_measures_again_and_does_not_train(story: Any) -> None:
    folder, grid, folders, _ = story
    write_grid(folder, 3)
    try:
        before = read_json(folders["ffn-s1"].last.done)
        assert main(["ablate", "grid.yaml", "--out=out", "--run=ffn-s1"]) == 0
        assert read_json(folders["ffn-s1"].last.done) == before
        few, more = (folders["ffn-s1"].measured(evaluators(count)["text"]) for count in (2, 3))
        assert few is not None and more is not None and few["tokens"] < more["tokens"]
        changed = read_grid(folder / "grid.yaml")
        assert not folders["none-s0"].finished(changed.evaluators) and folders["none-s0"].trained()
    finally:
        write_grid(folder, 2)


def test_a_metric_that_its_evaluator_does_not_give_is_one_line(story: Any, capfd: pytest.CaptureFixture[str]) -> None:
    folder, *_ = story
    grid = yaml.safe_load((folder / "grid.yaml").read_text())
    (folder / "grid2.yaml").write_text(yaml.safe_dump({**grid, "metrics": ["text.nl"], "seeds": [7]}))
    assert main(["ablate", "grid2.yaml", "--out=out2"]) == 2, "before anything is trained"
    assert not (folder / "out2" / "runs").exists()
    assert "evaluator 'text' does not give 'nl'; did you mean 'nll'?" in capfd.readouterr().err


def test_two_sweeps_do_not_run_the_same_run(story: Any, capfd: pytest.CaptureFixture[str]) -> None:
    _, _, folders, _ = story
    with folders["ffn-s0"].locked():
        assert main(["ablate", "grid.yaml", "--out=out", "--run=ffn-s0"]) == 75
    assert "is running here; another sweep has this run" in capfd.readouterr().err


def test_a_run_that_is_not_in_the_grid_is_named(story: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "grid.yaml", "--out=out", "--run=fn-s0"]) == 2
    assert "no run is called 'fn-s0' (was the grid changed?); did you mean 'ffn-s0'?" in capfd.readouterr().err
