"""Every recipe: resolves, runs two steps of every stage at toy size, and the toy ones give the expected losses."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmframe.callbacks.jsonl import read_metrics
from mmframe.cli.main import main
from mmframe.cli.recipe import Recipe, load_recipe, shipped
from tests.toy_size import toy_size

ROOT = Path(__file__).parents[1]
RECIPES = sorted(shipped().values())
EXPECTED = ROOT / "tests" / "expected"
TOY = ["toy/evip", "toy/evip_pp", "toy/dense"]
"""Small as they are: they train 20 steps of every stage."""
ELSEWHERE = ["toy/scores"]
"""All stages train in tests/evaluate/test_in_training.py."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "recipes").with_suffix("").as_posix()


def stage_folders(recipe: Recipe, run: Path) -> list[Path]:
    """Run directory of each stage; a recipe without stages runs in the directory itself."""
    return [run / stage for stage in recipe.stages] or [run]


def test_the_recipes_are_found() -> None:
    """A glob that finds nothing would make every test below pass."""
    assert {name_of(p) for p in RECIPES} >= {
        "evip", "evip_pp", "internvl_1_5", "finetune", "demo/evip", "demo/evip_pp", "demo/full_tuning",
        "toy/evip", "toy/evip_pp", "toy/dense",
    }  # fmt: skip
    assert not any(name_of(p).startswith("tasks") for p in RECIPES), "tasks of `mmframe evaluate` are no recipes"


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_has_a_header_that_says_what_it_reproduces(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert len(header) >= 3, f"{path} has no header"
    text = "\n".join(header)
    assert "--config" in text, f"the header of {path} gives no launch line"


@pytest.mark.parametrize("path", [p for p in RECIPES if name_of(p) not in TOY + ELSEWHERE], ids=name_of)
def test_every_stage_trains_two_steps_at_toy_size(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe([str(path)])
    words = toy_size(recipe)
    if "backbone" not in recipe.common["model"]:  # a checkpoint brings it
        start = tmp_path / "start"
        assert main(["fit", "toy/dense", "--run-dir", str(start), *toy_size(load_recipe(["toy/dense"]))]) == 0
        words.append(f"--start_from={start}")
    code = main(["fit", "--config", str(path), "--run-dir", str(tmp_path), "--in-process", *words])
    assert code == 0
    for folder in stage_folders(recipe, tmp_path):
        assert (folder / "done.json").is_file(), f"{folder.name} did not finish"


@pytest.mark.parametrize("name", TOY)
def test_losses_are_the_expected_ones(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """P22: 20 steps of each stage in fp32. `pytest --update-expected` writes the files anew: say why in the commit."""
    options = ["--trainer.precision=32-true", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]
    assert main(["fit", "--config", name, "--run-dir", str(tmp_path), "--in-process", *options]) == 0
    lines = []
    for folder in stage_folders(load_recipe([name]), tmp_path):
        rows = [row for row in read_metrics(folder) if "train/loss" in row]
        assert [row["step"] for row in rows] == list(range(20))
        stage = folder.name if folder != tmp_path else "run"
        lines += [f"{stage} {row['step']} {row['train/loss']:.7f}" for row in rows]
    file = EXPECTED / f"{name.replace('/', '_')}.txt"
    if request.config.getoption("--update-expected"):
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(lines) + "\n")
    expected = file.read_text().split("\n")[:-1]
    assert len(expected) == len(lines)
    for line, wanted in zip(lines, expected, strict=True):
        assert line.split()[:2] == wanted.split()[:2]
        assert float(line.split()[2]) == pytest.approx(float(wanted.split()[2]), rel=1e-4), f"{line}, expected {wanted}"
