"""Every shipped task: loads from its official layout, asks what it always asked, and can be answered perfectly.

`pytest tests/tasks --update-expected` writes the snapshots of the prompts anew: say why in the commit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmframe import registry
from mmframe.cli.evaluate_tasks import written
from mmframe.data.pictures import open_picture, picture_size
from mmframe.metrics.base import TaskMetric
from mmframe.tasks import Example, load_task, task_names
from mmframe.tasks.row_task import RowTask
from mmframe.tasks.spec import read_spec

SNAPSHOTS = Path(__file__).parent / "snapshots"
NAMES = task_names()

PERFECT: dict[str, Callable[[Any], Any]] = {
    "answers": lambda answers: answers if isinstance(answers, str) else answers[0],
    "answer": str,
    "captions": lambda captions: captions[0],
    "text": str,
}
"""An answer that is right, by the key of the reference that holds it."""

FULL = {"MMEScore": 2800, "OCRBenchScore": 2, "CIDEr": 1000, "CharacterErrorRate": 0}
"""The score of right answers where it is not 100: of all MME's subtasks, of two questions, of like captions."""


def perfect(example: Example, metric: str) -> Any:
    if metric == "LikelihoodChoice":
        return [(0.0 if n == example.reference["answer"] else -9.0, 1) for n in range(len(example.options))]
    if metric == "HallusionBenchScore":
        return "Yes" if example.reference["answer"] == "1" else "No"
    if metric == "MATHAccuracy":
        return f"So it is $\\boxed{{{example.reference['answer']}}}$."
    key = next(key for key in PERFECT if key in example.reference)
    return PERFECT[key](example.reference[key])


@pytest.fixture(scope="module")
def tasks(official_data: Path) -> dict[str, RowTask]:
    return {name: load_task(name, official_data) for name in NAMES}


def test_the_issue_s_tasks_are_there() -> None:
    asked = (
        "mmbench_en_dev mmbench_en_test mmvet mmmu_val mme mathvista_testmini seed_image ocrbench hallusionbench "
        "ccbench textvqa_val scienceqa_img_test gqa_testdev docvqa_val docvqa_test ai2d_test chartqa_test infovqa_val "
        "coco_caption flickr30k nocaps_val vqav2_val pope mmlu cmmlu agieval math math_500 easy_vqa_test digits_ocr "
        "documents_ocr documents_anls flags maps clipart_captions wordnet_text wordnet_choice gcide_text"
    ).split()
    assert set(asked) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_those_of_the_snapshot(
    name: str, tasks: dict[str, RowTask], request: pytest.FixtureRequest
) -> None:
    task = tasks[name]
    shown = [f"prompts {task.prompt_digest}", *(written(task[index]) for index in range(min(2, len(task))))]
    text = "\n\n".join(shown) + "\n"
    file = SNAPSHOTS / f"{name}.txt"
    if request.config.getoption("--update-expected"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), f"{name} asks something else than {file.name} says"


def test_no_snapshot_is_of_a_task_that_is_gone() -> None:
    assert {file.stem for file in SNAPSHOTS.glob("*.txt")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_get_the_full_score(name: str, tasks: dict[str, RowTask]) -> None:
    task = tasks[name]
    assert isinstance(metric := registry.get("metric", task.metric["class_path"]), type)
    scorer = metric(**task.metric.get("init_args", {}))
    assert isinstance(scorer, TaskMetric)
    examples = list(task)
    assert len({example.id for example in examples}) == len(task) >= 1
    if not task.scored:
        assert all(not example.reference for example in examples)
        return
    if task.mode == "perplexity":  # the runner adds the tokens
        scorer.update([0.0] * len(task), [{**example.reference, "tokens": 5} for example in examples])
        assert scorer.compute()["perplexity"] == 1 and scorer.compute()["bits_per_byte"] == 0
        return
    answers = [perfect(example, type(scorer).__name__) for example in examples]
    scorer.update(answers, [example.reference for example in examples], [example.id for example in examples])
    figures = scorer.compute()
    assert figures[scorer.headline] == pytest.approx(FULL.get(type(scorer).__name__, 100)), figures
    assert figures["n"] == len(task) and figures.get("unmatched", 0) == 0


@pytest.mark.parametrize("name", NAMES)
def test_placeholders_and_pictures_go_together(name: str, tasks: dict[str, RowTask]) -> None:
    for example in tasks[name]:
        said = "".join(turn["value"] for turn in example.turns)
        assert said.count("<image>") == len(example.images)
        assert example.turns[-1]["from"] == "human"
        for picture in example.images:
            size = (32, 32) if name.startswith("toy_") else (40, 30)
            assert picture_size(picture) == open_picture(picture).size == size


def test_headers_say_what_a_task_is() -> None:
    """Like a line of the paper's table: benchmark, source, metric; where the files are had."""
    for name in NAMES:
        spec = read_spec(name)
        header = [line for line in Path(spec.file).read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        assert len(header) >= 2, name
        if spec.table != "offline":
            assert spec.data["get"] and spec.data["folder"], name
            if spec.mode == "generate" and spec.table != "language":
                assert spec.max_tiles, f"{name}: the published image budget"
