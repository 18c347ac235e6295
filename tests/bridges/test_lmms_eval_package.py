"""The bridge in lmms-eval itself, on a task of ours; skipped where lmms-eval is not installed (docs/lmms_eval.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmframe.engine import Engine
from mmframe.evaluate.likelihood import option_likelihoods
from mmframe.loading import load
from mmframe.sampling import SamplingParams

from ..cli.served import picture, tiny_model

pytest.importorskip("lmms_eval")
datasets = pytest.importorskip("datasets")

ROOT = Path(__file__).parents[2]
ENTRY_POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
TASK = """
dataset_path: parquet
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
doc_to_visual: !function utils.pictures
doc_to_text: question
doc_to_target: answer
metadata: {version: 0.0}
"""
GENERATE = """
task: ours_generate
output_type: generate_until
generation_kwargs: {max_new_tokens: 6, temperature: 0, do_sample: false, num_beams: 1}
process_results: !function utils.length
metric_list: [{metric: length, aggregation: mean, higher_is_better: true}]
"""
LIKELY = """
task: ours_likely
output_type: multiple_choice
doc_to_choice: [yes it is, "no", perhaps]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
UTILS = """
def pictures(document):
    return [document["left"].convert("RGB"), document["right"].convert("RGB")]
def length(document, answers):
    return {"length": float(len(answers[0]))}
"""
QUESTIONS = ["what?", "is the left one larger?", "why is it so", "and the colour"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and two tasks over two pictures a question."""
    place = tmp_path_factory.mktemp("lmms_eval")
    tiny_model(place / "model", template="chatml")
    columns: dict[str, Any] = {"question": QUESTIONS, "answer": [0, 1, 2, 1]}
    for side, seed in (("left", 0), ("right", 50)):
        columns[side] = [str(picture(place / f"{side}{n}.png", 20 + 9 * n, 20, seed + n)) for n in range(4)]
    table = datasets.Dataset.from_dict(columns)
    for side in ("left", "right"):
        table = table.cast_column(side, datasets.Image())
    table.to_parquet(str(place / "data.parquet"))
    (place / "tasks").mkdir()
    (place / "tasks" / "utils.py").write_text(UTILS)
    for name, text in (("generate", GENERATE), ("likely", LIKELY)):
        (place / "tasks" / f"{name}.yaml").write_text(text + TASK.replace("DATA", str(place / "data.parquet")))
    return place


@pytest.fixture(autouse=True)
def caches(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(place / "cache"))


def evaluate(place: Path, task: str, **options: Any) -> dict[str, Any]:
    from lmms_eval.evaluator import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lmms_eval.models import MODEL_REGISTRY_V2  # pyright: ignore[reportMissingImports]
    from lmms_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    manifest = EntryPoint("mmframe", ENTRY_POINTS["lmms_eval.models"]["mmframe"], "lmms_eval.models").load()
    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    tasks = TaskManager(include_path=str(place / "tasks"), include_defaults=False, model_name="mmframe")
    words = f"pretrained={place / 'model'},batch_size=3,device=cpu,max_tiles=4"
    return simple_evaluate("mmframe", words, tasks=[task], task_manager=tasks, bootstrap_iters=0, **options)


def prompts(place: Path) -> tuple[Engine, list[Any]]:
    loaded = load(place / "model")
    made = []
    for number, question in enumerate(QUESTIONS):
        images = [Image.open(place / f"{side}{number}.png") for side in ("left", "right")]
        made.append(loaded.processor.encode_prompt(question, images, loaded.net.patch_embedder, 4))
    return Engine(loaded.net, loaded.processor), made


@pytest.mark.parametrize("simple", [False, True])
def test_answers_are_those_of_the_engine(place: Path, simple: bool) -> None:
    found = evaluate(place, "ours_generate", force_simple=simple)
    engine, asked = prompts(place)
    expected = [one.text for one in engine.generate(asked, SamplingParams(6))]
    samples = sorted(found["samples"]["ours_generate"], key=lambda sample: sample["doc_id"])
    assert [sample["resps"] for sample in samples] == [[[text]] for text in expected]
    assert [sample["token_counts"][0]["output_tokens"] for sample in samples] == [6] * 4
    lengths = [len(text.strip()) for text in expected]
    assert found["results"]["ours_generate"]["length,none"] == pytest.approx(sum(lengths) / 4)


def test_the_likeliest_option_is_chosen(place: Path) -> None:
    found = evaluate(place, "ours_likely", force_simple=True)
    engine, asked = prompts(place)
    options = ["yes it is", "no", "perhaps"]
    scored = option_likelihoods(engine, asked, [options] * 4)
    losses = torch.tensor([[-one.total / one.tokens for one in group] for group in scored])
    right = (losses.argmin(1) == torch.tensor([0, 1, 2, 1])).float().mean()
    assert found["results"]["ours_likely"]["acc,none"] == pytest.approx(float(right))


@pytest.mark.slow
def test_the_command_line_finds_the_model_by_its_entry_point(place: Path) -> None:
    """As an installed mmframe declares it: the environment of the tests may have been made before there was one."""
    installed = place / "installed" / "mmframe-0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mmframe\nVersion: 0\n")
    groups = [[f"[{group}]", *(f"{n} = {v}" for n, v in points.items())] for group, points in ENTRY_POINTS.items()]
    (installed / "entry_points.txt").write_text("\n".join(line for group in groups for line in group))
    paths = [str(installed.parent), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    arguments = f"pretrained={place / 'model'},batch_size=2,max_tiles=4"
    words = f"--model mmframe --model_args {arguments} --device cpu --tasks ours_generate"
    done = subprocess.run(
        [sys.executable, "-m", "lmms_eval", *words.split(), "--include_path", place / "tasks", "--limit", "3"]
        + ["--output_path", place / "out", "--log_samples"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert "ours_generate" in done.stdout, done.stdout + done.stderr
    (samples,) = (place / "out").rglob("*samples_ours_generate.jsonl")
    engine, asked = prompts(place)
    said = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
    assert said == [one.text.strip() for one in engine.generate(asked[:3], SamplingParams(6))]
