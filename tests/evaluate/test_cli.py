"""`mmframe evaluate` and `lightning test`: real commands on a task in a YAML file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmframe.evaluate.record import Result
from mmframe.evaluate.run import evaluate_task
from mmframe.loading import load
from mmframe.tasks import load_task
from tests.cli.conftest import QUICK, elsewhere, start  # noqa: F401  fixture
from tests.cli.served import picture, read_rows, write_rows

from .tasks import WORDS

TASK = """
about: "made: questions of this test"
split: val
data:
  folder: made
  jsonl: {file: questions.jsonl}
fields: {id: "{id}", images: "{image?}", question: "{question}"}
reference: {answers: "{answers}"}
prompt: "{question}"
max_tiles: 1
decoding: {max_new_tokens: 24}
metric: {class_path: ANLS}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with official files, as it were, and made.yaml beside it."""
    folder = tmp_path_factory.mktemp("data")
    picture(folder / "made" / "0.png", 50, 20)
    rows = [
        {"id": f"q{n}", "question": " ".join(WORDS[: 1 + n * 7 % 12]), "answers": ["blue", "x"], "image": ""}
        | ({"image": "0.png"} if n % 3 == 0 else {})
        for n in range(60)
    ]
    write_rows(folder / "made" / "questions.jsonl", rows)
    (folder / "made.yaml").write_text(TASK, encoding="utf-8")
    return folder


def words(model_folder: Path, data: Path, *more: str) -> list[str]:
    task = str(data / "made.yaml")
    return ["evaluate", "--model", str(model_folder), "--tasks", task, "--data", str(data), "--name=m", *more]


def test_killed_and_gone_on_with_by_two_ranks_it_is_the_uninterrupted_one(model_folder, data, elsewhere) -> None:  # noqa: F811
    shard = elsewhere / "results" / "m" / "made" / "answers.0.jsonl"
    process = start(*words(model_folder, data, "--batch-size=1"), cwd=elsewhere)
    deadline = time.monotonic() + 200
    while not shard.exists() or shard.read_bytes().count(b"\n") < 8:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    there = shard.read_bytes().count(b"\n")
    assert 8 <= there < 60
    with shard.open("ab") as file:  # as if the kill had come in the middle of a write
        file.write(b'{"id": "q59", "answer": "half a')

    process = start(*words(model_folder, data, "--batch-size=5", "--ranks=2"), cwd=elsewhere)
    said, _ = process.communicate(timeout=250)
    assert process.returncode == 0, said
    assert f"made: {there} of 60 answers are there; goes on from there" in said and "2 ranks" in said
    assert said.count("results/m/made") == 1, "one table"

    whole = evaluate_task(load_task(str(data / "made.yaml"), data), load(model_folder), batch_size=8)
    assert read_rows(shard.with_name("answers.jsonl")) == whole.rows
    result = Result.read(shard.parent)
    assert (result.figures, result.n, result.ranks) == (whole.figures, 60, 2)
    assert result.extra == {"answered_before": there} and result.model["name"] == "m"
    assert sorted(file.name for file in shard.parent.iterdir()) == ["answers.jsonl", "result.json", "settings.json"]


def test_a_table_at_the_end_and_nothing_twice(cli, model_folder, data, elsewhere) -> None:  # noqa: F811
    (elsewhere / "again.yaml").write_text(TASK.replace("max_new_tokens: 24", "max_new_tokens: 3"), encoding="utf-8")
    more = ["--limit=6", "--tasks", f"{data / 'made.yaml'}, {elsewhere / 'again.yaml'}"]
    code, out, err = cli(*words(model_folder, data, *more))
    assert code == 0, err
    head, first, second = out.splitlines()
    assert head.split() == ["task", "figure", "score", "n", "unmatched", "errors", "minutes", "written", "to"]
    assert first.split()[:6] == ["made", "anls", "0.00", "6", "0", "0"] and second.endswith("results/m/again")
    before = (elsewhere / "results/m/made/answers.jsonl").read_bytes()
    code, _, err = cli(*words(model_folder, data, *more))
    assert code == 0 and "made: 6 of 6 answers are there" in err
    assert (elsewhere / "results/m/made/answers.jsonl").read_bytes() == before
    code, _, err = cli(*words(model_folder, data, "--limit=6", "--dtype=bf16"))
    assert code == 2 and "its 6 rows were made with" in err and "--force" in err


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--tasks=docvqa_vol"], "docvqa_val"),
        (["--data=nowhere"], "--data nowhere is no folder"),
        (["--tasks=,"], "names no task"),
        (["--tasks=a,a"], "'a' stands twice"),
        (["--dtype=fp16"], "fp16 gives NaN"),
        (["--judge=http://localhost:1/v1"], "--judge and --judge-model belong together"),
        (["--batch-sise=1"], "--batch-size"),
        (["--ranks=2", "--tasks=docvqa_vol"], "docvqa_val"),
    ],
)
def test_mistakes_are_one_line(more, part, fails, model_folder, data, elsewhere) -> None:  # noqa: F811
    assert part in fails(*words(model_folder, data, *more))
    assert not (elsewhere / "results").exists()


def test_help_and_mistakes_load_no_torch(elsewhere) -> None:  # noqa: F811
    code = (
        "import sys; from mmframe.cli.main import main; main(['evaluate', '--help']);"
        "main(['evaluate', '--model=m', '--tasks=docvqa_vol']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_stage_is_tested_as_its_weights_are(cli, data, elsewhere) -> None:  # noqa: F811
    recipe = ["--config", "toy/dense", "--trainer.precision=bf16-mixed"]
    code, _, err = cli("fit", *recipe, *QUICK)
    assert code == 0, err
    tests = ["--data=TaskData", f"--data.tasks={data / 'made.yaml'}", f"--data.folder={data}", "--data.limit=9"]
    code, out, err = cli("test", *recipe, *QUICK, *tests)
    assert code == 0, err
    assert "test/made/anls" in out
    run = elsewhere / "runs" / "toy" / "dense"
    tested = Result.read(run / "results" / "made")
    assert tested.model["name"] == "toy-dense" and tested.model["dtype"] == "float32" and tested.n == 9
    loaded = load(run)
    result = evaluate_task(load_task(str(data / "made.yaml"), data), loaded, limit=9)
    assert read_rows(run / "results" / "made" / "answers.jsonl") == result.rows
    assert json.loads(json.dumps(tested.model["weights"])) == result.model["weights"]

    code, _, err = cli("test", *recipe, *QUICK)
    assert code == 2 and "data: ToyData has no tests; name benchmarks: --data=TaskData" in err
    code, _, err = cli("fit", *recipe, *QUICK, *tests, "--force")
    assert code == 2 and "TaskData: holds benchmarks" in err
