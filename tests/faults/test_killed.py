"""Real processes, really killed: the run ends with the weights of the undisturbed one, or with one clear line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from mmframe.callbacks.jsonl import read_metrics
from mmframe.data.loader_watch import Watched
from tests.cli.conftest import ROOT, start

from .support import DENSE, HERE, assert_same_weights, callback


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kills, steps", [(3, 20), pytest.param(50, 320, marks=pytest.mark.slow)])
def test_a_run_killed_again_and_again_ends_bit_for_bit_as_the_undisturbed_one(cli, elsewhere, kills, steps):
    words = [*DENSE, f"--trainer.max_steps={steps}", "--checkpoint_every=1", "--in-process"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "tests.faults.soak", str(kills), "7", "killed", *words, "--run-dir=killed"]
    soaked = subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True)
    assert soaked.returncode == 0, soaked.stderr[-3000:]
    assert cli(*words, "--run-dir=whole")[0] == 0
    assert_same_weights(elsewhere / "killed", elsewhere / "whole")
    rows = [[row["train/loss"] for row in read_metrics(elsewhere / name)] for name in ("killed", "whole")]
    assert rows[0] == rows[1] and len(rows[0]) == steps
    attempts = json.loads((elsewhere / "killed/meta.json").read_text())["attempts"]
    assert 1 < len(attempts) <= kills + 1  # some kills come before the run has begun


@pytest.mark.timeout(900)
def test_a_lost_rank_ends_the_others_and_one_rank_goes_on_with_the_same_batches(cli, elsewhere):
    lost = callback("KillAt", step=3, rank=1, once="lost")
    words = [*DENSE, "--trainer.max_steps=6", "--checkpoint_every=2", "--trainer.precision=32-true", "--data.size=24"]
    ranks = start(*words, lost, "--run-dir=r", "--trainer.devices=2", "--trainer.strategy=ddp",
                  "--faults.rank_timeout=120", cwd=elsewhere, PYTHONPATH=f"{ROOT}")  # fmt: skip
    out = ranks.communicate(timeout=400)[0]
    assert ranks.returncode == 75, out
    line = out.strip().splitlines()[-1]
    assert "rank 0 of 2: another rank is gone or does not answer" in line and "Traceback" not in out, out
    code, _, err = cli(*words, lost, "--run-dir=r")
    assert code == 0 and "continues from r/checkpoints/step-00000002.ckpt" in err, err
    assert "resume: 2 ranks x batch_size 4 x accumulate_grad_batches 1 becomes 1 ranks x batch_size 4 x" in err
    # without a loss: one rank that takes the same rows a step. Sums come in another order, so equal to rounding
    assert cli(*words, "--run-dir=whole", "--trainer.accumulate_grad_batches=2")[0] == 0
    one, other = (load_file(elsewhere / name / "weights.safetensors") for name in ("r", "whole"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=2e-5)
    totals = [json.loads((elsewhere / name / "done.json").read_text())["totals"]["samples"] for name in ("r", "whole")]
    assert totals == [48, 48]


def test_a_loader_process_that_hangs_or_dies_is_told_with_its_row(cli):
    words = [word for word in DENSE if not word.startswith("--data")]
    for dies, told in (("false", "no batch came within 1 s (faults.data_timeout)"), ("true", "was ended from outside")):
        data = f"--data={{class_path: {HERE}.StuckData, init_args: {{row: 9, dies: {dies}}}}}"
        code, _, err = cli(*words, data, "--faults.data_timeout=1", f"--run-dir=r-{dies}", "--trainer.max_steps=8")
        line = err.strip().splitlines()[-1]
        assert code == 2 and "Traceback" not in err and told in line and "row 9 of epoch 0 for" in line, err


def test_the_death_of_a_loader_process_is_told_whoever_met_it_first():
    """Torch raises it wherever the program is; a logger that was writing a line makes a ValueError of it."""
    torch_says = RuntimeError("DataLoader worker (pid 19564) is killed by signal: Killed. ")
    logger_says = ValueError("you tried to log 0 which is currently not supported")
    assert Watched.death(logger_says) is None
    logger_says.__cause__ = torch_says
    for error in (torch_says, logger_says):
        assert "was ended from outside" in (Watched.death(error) or "")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_preemption_of_two_ranks_leaves_a_checkpoint_and_the_run_ends_to_the_bit(elsewhere):
    """SIGTERM comes to the first rank, as from a scheduler that signals the batch script, or to the process group."""
    both = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    words = [*DENSE, "--trainer.max_steps=6", "--checkpoint_every=0", *both]

    def run(name: str, code: int) -> str:
        process = start(*words, callback("KillAt", step=3, name="SIGTERM", once="told"), "--run-dir", name,
                        cwd=elsewhere, PYTHONPATH=f"{ROOT}")  # fmt: skip
        out = process.communicate(timeout=600)[0]
        assert process.returncode == code and "Traceback" not in out, out
        return out

    assert "stopped by SIGTERM; the same command continues it" in run("r", 143)
    assert "continues from r/checkpoints/step-00000003.ckpt" in run("r", 0)
    run("whole", 0)
    assert_same_weights(elsewhere / "r", elsewhere / "whole")
