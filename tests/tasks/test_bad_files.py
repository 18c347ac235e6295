"""A mistake in a task's YAML or files is one line: what, where, what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mmframe.errors import UserError
from mmframe.tasks import load_task, task_names
from tests.tasks import official

Break = Callable[[Path], None]


def rewrite(name: str, old: str, new: str, count: int = -1) -> Break:
    """Changes a text in a file."""

    def change(root: Path) -> None:
        text = (root / name).read_text(encoding="utf-8")
        assert old in text
        (root / name).write_text(text.replace(old, new, count), encoding="utf-8")

    return change


def without_rotation(root: Path) -> None:
    rows = official.circular()
    official.put_table(root / "mmbench/MMBench_DEV_EN.tsv", [row for row in rows if row["index"] != 2_000_007])


def cut(name: str, size: int) -> Break:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:size])


def remove(name: str) -> Break:
    return lambda root: (root / name).unlink()


PARQUET = "docvqa/DocVQA/validation-00000-of-00001.parquet"
QUESTIONS = "vqav2/v2_OpenEnded_mscoco_val2014_questions.json"
MME = "MME_Benchmark_release_version"
BROKEN: list[tuple[str, Callable[[Path], None], Break, tuple[str, ...]]] = [
    ("docvqa_val", official.docvqa, remove(PARQUET), ("no file matches", "download DocVQA/validation-*.parquet")),
    ("docvqa_val", official.docvqa, cut(PARQUET, 300), (PARQUET, "no whole Parquet file", "get it again")),
    ("mmbench_en_dev", official.mmbench, without_rotation, ("question 7 is there 3 times", "4 options", "1 of 2")),
    ("mmbench_en_dev", official.mmbench, rewrite("mmbench/MMBench_DEV_EN.tsv", "\timage", "\tpicture", 1),
     ("no column 'image'", "picture")),
    ("mmbench_en_dev", official.mmbench, rewrite("mmbench/MMBench_DEV_EN.tsv", "\tquestion", "\tqestion", 1),
     ("row 1", "no column 'question'; did you mean 'qestion'")),
    ("mmbench_en_dev", official.mmbench, rewrite("mmbench/MMBench_DEV_EN.tsv", "2000007", "1000007"),
     ("ids stand twice, '1000007'", "MMBench_DEV_EN.tsv")),
    ("mmbench_en_dev", official.mmbench, rewrite("mmbench/MMBench_DEV_EN.tsv", "\t7\n", "\t77\n", 1),
     ("row 2", "'77' names no row with a picture")),
    ("mmbench_en_dev", official.mmbench, rewrite("mmbench/MMBench_DEV_EN.tsv", "\tboat", "", 1),
     ("row 1 has 9 cells, there are 10 columns")),
    ("seed_image", official.seed, remove("SEED-Bench/SEED-Bench-image/0_0"), ("row 1", "0_0 is missing", "download")),
    ("seed_image", official.seed, rewrite("SEED-Bench/SEED-Bench.json", '"questions"', '"question"'),
     ("there is no 'questions'", "keys question_type, question")),
    ("seed_image", official.seed, cut("SEED-Bench/SEED-Bench.json", 100), ("SEED-Bench.json", "it is not JSON")),
    ("seed_image", official.seed, rewrite("SEED-Bench/SEED-Bench.json", '"image"', '"video"'), ("no row is left",)),
    ("vqav2_val", official.vqav2, rewrite(QUESTIONS, "42001", "42007"), ("row 2: question_id 42007 is not among",)),
    ("scienceqa_img_test", official.scienceqa, rewrite("scienceqa/pid_splits.json", '"5"', '"55"'),
     ("'55' is in pid_splits.json but not in it",)),
    ("pope", official.pope, rewrite("pope/coco_pope_popular.json", '"label"', '"label'), ("line 1 is not JSON",)),
    ("pope", official.pope, remove("pope/coco_pope_popular.json"), ("popular.json does not exist", "download")),
    ("mme", official.mme, remove(f"{MME}/color/0001.png"), ("0001.txt: there is no picture 0001.jpg", "color")),
    ("mme", official.mme, lambda root: shutil.rmtree(root / MME / "scene"), ("no folder", "scene", "ask for MME")),
    ("mme", official.mme, rewrite(f"{MME}/count/0001.txt", "\t", " "), ("line 1", "a tab between them")),
    ("mmlu", official.mmlu, remove("mmlu/dev/world_religions_dev.csv"),
     ("5 examples are needed before it, there are 0 for 'world religions'",)),
    ("math", official.maths, lambda root: official.put_parquet(
        root / "math/algebra/test-0.parquet", [{"problem": "?", "solution": "5", "level": "1", "type": "a"}]),
     ("row 1", "has no \\boxed answer")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "make", "spoil", "said"), BROKEN, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(BROKEN)]
)
def test_a_broken_official_file_is_one_line(
    name: str, make: Callable[[Path], None], spoil: Break, said: tuple[str, ...], tmp_path: Path
) -> None:
    make(tmp_path)
    assert len(load_task(name, tmp_path))
    spoil(tmp_path)
    with pytest.raises(UserError) as error:
        list(load_task(name, tmp_path))
    message = str(error.value)
    assert message.startswith(f"task {name}: ") and "\n" not in message
    for part in said:
        assert part in message, message


def test_a_picture_that_is_no_base64_is_told_with_its_row(tmp_path: Path) -> None:
    official.ai2d(tmp_path)
    rewrite("ai2d/AI2D_TEST.tsv", official.coded(1), "?" * 80)(tmp_path)
    task = load_task("ai2d_test", tmp_path)  # pictures are read when they are asked for
    with pytest.raises(UserError, match=r"AI2D_TEST.tsv row 2: the picture is not base64"):
        task[1].images[0].read()  # type: ignore[union-attr]


def test_without_data_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match="task gqa_testdev: .*say with --data DIR where the files are; download questions1"
    ):
        load_task("gqa_testdev")
    with pytest.raises(UserError, match="--data .*nowhere is no folder"):
        load_task("gqa_testdev", tmp_path / "nowhere")
    monkeypatch.setenv("MMFRAME_OFFLINE_DATA", str(tmp_path))
    with pytest.raises(UserError, match="no file matches offline:flags.*run: mmframe data offline"):
        load_task("flags")


def test_the_hub_is_asked_for_the_task_s_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network here: a stand-in takes the call of huggingface_hub and lays a local copy there."""
    asked = {}

    def download(repository: str, **arguments: object) -> str:
        asked.update(arguments, repository=repository)
        official.chartqa(tmp_path / "copy")
        return str(tmp_path / "copy/chartqa")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert len(load_task("chartqa_test")) == 2
    assert (asked["repository"], asked["repo_type"]) == ("lmms-lab/ChartQA", "dataset")
    assert asked["allow_patterns"] == "data/test-*.parquet" and asked["local_dir"] is None


def test_without_a_network_the_message_says_where_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise OSError("no network\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(
        UserError, match=r"lmms-lab/ChartQA cannot be downloaded \(no network\).*put them into .*chartqa"
    ):
        load_task("chartqa_test", tmp_path)


# ---- the YAML --------------------------------------------------------------------------------------------------------

GOOD = {
    "about": "mine",
    "split": "test",
    "data": {"jsonl": {"file": "rows.jsonl"}},
    "fields": {"id": "{n}"},
    "reference": {"answers": "{a}"},
    "prompt": "{q}",
    "metric": {"class_path": "ExactMatch"},
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"promt": "x"}, "unknown key 'promt'; did you mean 'prompt'"),
        ({"metric": {"class_path": "ExactMach"}}, "no metric is called 'ExactMach'; did you mean 'ExactMatch'"),
        ({"metric": {"class_path": "ExactMatch", "init_args": {"normalize": 1}}}, "did you mean 'normalise'"),
        ({"data": {"jsnl": {}}}, "unknown key 'jsnl'; did you mean 'jsonl'"),
        ({"data": {"jsonl": {"fil": "x"}}}, "reader jsonl has no argument 'fil'; did you mean 'file'"),
        ({"data": {"jsonl": {}}}, "reader jsonl needs 'file'"),
        ({"data": {}}, "names 0 readers"),
        ({"mode": "generat"}, "mode='generat'; did you mean 'generate'"),
        ({"decoding": {"max_tokens": 3}}, "decoding: unknown key 'max_tokens'; did you mean 'max_new_tokens'"),
        ({"extends": "docvqa_vall"}, "extends: no task 'docvqa_vall'; did you mean 'docvqa_val'"),
        ({"prompt": "{qq}"}, "no column 'qq'"),
        ({"prompt": "{q|lowr}"}, "no filter 'lowr'; did you mean 'lower'"),
        ({"prompt": "{q"}, "a single '{'"),
        ({"data": {"jsonl": {"file": "rows.jsonl"}, "each": "q"}}, "'q' is no list"),
        ({"data": {"jsonl": {"file": "rows.jsonl"}, "keep": {"z": 1}}}, "no column 'z', by which rows are kept"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_yaml_is_one_line(change: dict, said: str, tmp_path: Path) -> None:
    official.put_lines(tmp_path / "rows.jsonl", [{"n": 1, "q": "what?", "a": "x"}])
    (tmp_path / "mine.yaml").write_text(json.dumps(GOOD | change))
    with pytest.raises(UserError) as error:
        load_task(str(tmp_path / "mine.yaml"), tmp_path)
    assert said in str(error.value) and "mine" in str(error.value)


def test_unknown_tasks_have_a_nearest_name() -> None:
    with pytest.raises(UserError, match="no task 'docvqa_vall'.*did you mean 'docvqa_val'"):
        load_task("docvqa_vall")
    assert not any(name.startswith("_") for name in task_names())
