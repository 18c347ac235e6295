"""How ranks are started: by Lightning, by torchrun; over two machines, which here are network namespaces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mmframe.cli.main import main

ROOT = Path(__file__).parents[2]
WORDS = ["--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]


def test_a_chain_of_stages_is_refused_where_ranks_were_started_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert main(["fit", "--config", "toy/evip"]) == 2
    line = capsys.readouterr().err
    assert "8 processes were started together" in line and "--stage (s1_1_concept, " in line
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_deepspeed_that_is_not_installed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--config=toy/dense", "--config=strategies/deepspeed_zero1", "--in-process", *WORDS]
    assert main(words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "deepspeed_zero1 needs DeepSpeed: pip install 'mmframe[deepspeed]'; zero1 divides memory alike" in line


@pytest.mark.slow
def test_lightning_starts_the_ranks_of_every_stage(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmframe", "fit", "toy/evip", "--config=strategies/fsdp2", "--trainer.devices=2"]
    done = subprocess.run(
        [*command, "--run-dir=run", *WORDS], cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run").rglob("done.json"))) == 4


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and iproute2")
def test_two_nodes_in_network_namespaces(tmp_path: Path) -> None:
    script = ROOT / "experiments" / "cluster" / "two_nodes.sh"
    environment = {**os.environ, "PYTHON": sys.executable}
    words = ["--config", "toy/evip_pp", "--config", "strategies/fsdp2", "--stage", "s2_instruction"]
    words += ["--model.init_from=null", *WORDS]
    done = subprocess.run(
        [script, tmp_path / "run", *words], env=environment, capture_output=True, text=True, timeout=280
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("this sandbox makes no network namespaces")
    assert done.returncode == 0, done.stderr
    assert "two nodes trained" in done.stdout
    (file,) = (tmp_path / "run").rglob("done.json")
    assert json.loads(file.read_text())["steps"] == 2
