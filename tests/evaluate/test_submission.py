"""Splits whose answers are with a server: the answers are written as it takes them, and only all of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mmframe.tasks import load_task, task_names
from mmframe.tasks.spec import read_spec
from tests.cli.conftest import elsewhere  # noqa: F401  fixture
from tests.cli.served import read_rows
from tests.tasks.official import docvqa, mmbench

UNSCORED = [name for name in task_names() if not read_spec(name).reference and read_spec(name).mode == "generate"]


@pytest.fixture
def words(model_folder: Path, elsewhere: Path) -> list[str]:  # noqa: F811
    for make in (docvqa, mmbench):
        make(elsewhere / "data")
    return ["evaluate", "--model", str(model_folder), "--data=data", "--name=m", "--max-tiles=1"]


def test_every_split_without_public_answers_has_a_file_for_its_server() -> None:
    assert set(UNSCORED) == {"docvqa_test", "infovqa_test", "mmbench_en_test"}
    assert all(read_spec(name).submission["file"].startswith(name) for name in UNSCORED)


def test_the_answers_are_written_as_the_server_takes_them(cli, words, elsewhere) -> None:  # noqa: F811
    code, out, err = cli(*words, "--tasks=docvqa_test,mmbench_en_test", "--batch-size=2")
    assert code == 0 and out.count("not public") == 2, err
    folder = elsewhere / "results/m/docvqa_test"
    assert f"docvqa_test: its server takes {folder.relative_to(elsewhere)}/docvqa_test.json" in err
    answers = {row["id"]: row["answer"] for row in read_rows(folder / "answers.jsonl")}
    sent = json.loads((folder / "docvqa_test.json").read_text(encoding="utf-8"))
    assert sent == [{"questionId": number, "answer": answers[str(number)]} for number in (337, 338, 339)]

    folder = elsewhere / "results/m/mmbench_en_test"
    answers = {row["id"]: row["answer"] for row in read_rows(folder / "answers.jsonl")}
    with (folder / "mmbench_en_test.tsv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    official = load_task("mmbench_en_test", elsewhere / "data")
    assert [row["index"] for row in rows] == [example.id for example in official]
    assert all(row["prediction"] == answers[row["index"]] for row in rows)
    assert rows[0]["question"] == 'What is "this",\nquestion 7?' and rows[0]["A"] == "boat" and rows[-1]["C"] == ""


def test_a_part_is_not_submitted(cli, words, elsewhere) -> None:  # noqa: F811
    assert cli(*words, "--tasks=docvqa_test", "--limit=2")[0] == 0
    assert not (elsewhere / "results/m/docvqa_test/docvqa_test.json").exists()


def test_a_submission_that_no_one_can_write_is_one_line(fails, words, elsewhere) -> None:  # noqa: F811
    (elsewhere / "mine.yaml").write_text("extends: docvqa_test\nsubmission: {file: mine.xlsx}\n", encoding="utf-8")
    line = fails(*words, "--tasks=mine.yaml")
    assert "mine.yaml: submission: a `file` that ends in .json or .tsv and a `row` are needed" in line
