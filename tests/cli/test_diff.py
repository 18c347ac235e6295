"""P38: what a run was stands in its checkpoint, its weights and its folder; diff shows only what differs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmframe.cli.main import main
from mmframe.weights import read_weights


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folders = []
    for router in ("zero", "random"):
        folder = tmp_path_factory.mktemp(router)
        words = ["fit", "--config", "toy/evip_pp", "--stage", "s1_1_concept", "--run-dir", str(folder)]
        words += [f"--model.router.init={router}", "--trainer.max_steps=2", "--checkpoint_every=1"]
        words += ["--trainer.enable_progress_bar=false"]
        assert main(words) == 0
        folders.append(folder / "s1_1_concept")
    return folders[0], folders[1]


def test_runs_differ_in_one_key(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(runs[0]), str(runs[1])]) == 1
    assert capsys.readouterr().out.splitlines() == ["model.router.init_args.init: 'zero' -> 'random'"]


def test_what_runs_wrote_differs_as_the_runs_do(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    key = "model.router.init_args.init: 'zero' -> 'random'"
    for file in ("weights.safetensors", "checkpoints/last.ckpt"):
        assert main(["diff", str(runs[0] / file), str(runs[1] / file)]) == 1
        assert capsys.readouterr().out.splitlines() == [key]
        assert main(["diff", str(runs[0]), str(runs[0] / file)]) == 0
    assert main(["diff", str(runs[0].parent), str(runs[1].parent)]) == 1  # whole chains, as far as they have run
    assert capsys.readouterr().out.splitlines() == [f"s1_1_concept.{key}"]
    broken = runs[0].parent / "broken.ckpt"
    broken.write_bytes(b"no checkpoint")
    assert main(["diff", str(broken), str(runs[0])]) == 2
    assert "cannot be read as a checkpoint" in capsys.readouterr().err


def test_a_run_does_not_differ_from_itself(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(runs[0]), str(runs[0])]) == 0
    assert capsys.readouterr().out == ""


def test_recipes_differ(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "demo/evip@s1_1_concept", "demo/evip_pp@s1_1_concept"]) == 1
    out = capsys.readouterr().out
    assert "experts_at" in out and len(out.splitlines()) == 3  # q, k, v


def test_checkpoint_and_weights_say_where_they_come_from(runs: tuple[Path, Path]) -> None:
    checkpoint = torch.load(runs[0] / "checkpoints" / "last.ckpt", weights_only=True)
    _, metadata = read_weights(runs[0] / "weights.safetensors")
    for record in (checkpoint["mmframe"], metadata["run"]):
        assert record["seed"] == 0 and record["stage"] == "s1_1_concept"
        assert record["versions"]["torch"] and "revision" in record
        assert "ModalityRouter" in record["config"]
