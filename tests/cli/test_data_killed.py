"""Mixtures trained by the real command line, killed and continued, on 1 and 2 ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from mmframe.callbacks.jsonl import read_metrics
from mmframe.cli.main import main


def launch(folder: Path, run: str, ranks: int, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "mmframe"]
    if ranks > 1:
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--master-port=0",
                   "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "mmframe"]  # fmt: skip
        words = (*words, f"--trainer.devices={ranks}", "--trainer.strategy=ddp")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "fit", "mine.yaml", "--run-dir", run, *words], cwd=folder, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip


def killed_and_continued(folder: Path, run: str, ranks: int, *words: str) -> str:
    """Runs until some steps are done, kills all processes at once, and runs again to the end."""
    first = launch(folder, run, ranks, *words)
    metrics, deadline = folder / run / "metrics.jsonl", time.monotonic() + 200
    while not (metrics.is_file() and metrics.read_text().count("train/loss") >= 5):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    leader = psutil.Process(first.pid)
    for process in [*leader.children(recursive=True), leader]:  # torchrun's ranks have sessions of their own
        process.kill()
    first.communicate()
    second = launch(folder, run, ranks, *words)
    out = second.communicate(timeout=250)[0]
    assert second.returncode == 0 and "was cut off; continues from" in out, out
    return out


def same_result(folder: Path, one: str, other: str) -> None:
    weights = [load_file(folder / run / "weights.safetensors") for run in (one, other)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    told = ("step", "train/loss", "train/tokens")
    rows = [[{k: row[k] for k in told if k in row} for row in read_metrics(folder / run)] for run in (one, other)]
    assert rows[0] == rows[1] and len(rows[0]) == 12


@pytest.mark.slow  # in the default suite two ranks do the same, below
@pytest.mark.timeout(600)
def test_a_killed_mixture_ends_as_the_uninterrupted_one(folder):
    words = ("--data.num_workers=0", "--trainer.enable_progress_bar=false")
    killed_and_continued(folder, "killed", 1, *words)
    assert main(["fit", "mine.yaml", "--run-dir", "whole", *words, "--in-process"]) == 0
    same_result(folder, "killed", "whole")
    rows = [json.loads(line) for line in (folder / "killed" / "quarantine.jsonl").read_text().splitlines()]
    assert sorted((row["source"], row["reason"]) for row in rows) == [
        ("talks", "picture missing"), ("talks", "picture unreadable"),
    ]  # fmt: skip
    bad = [row["data/bad"] for row in read_metrics(folder / "killed") if "data/bad" in row]
    assert bad == sorted(bad) and bad[-1] >= 1


@pytest.mark.timeout(600)
def test_a_killed_mixture_on_two_ranks_with_loader_processes_ends_as_the_uninterrupted_one(folder):
    words = ("--trainer.enable_progress_bar=false", "--data.batch_size=1", "--data.num_workers=2")
    killed_and_continued(folder, "killed-ranks", 2, *words)
    whole = launch(folder, "whole-ranks", 2, *words)
    out = whole.communicate(timeout=250)[0]
    assert whole.returncode == 0, out
    same_result(folder, "killed-ranks", "whole-ranks")


def test_other_data_is_refused_in_one_line(folder, cli):
    words = ("fit", "mine.yaml", "--run-dir=other", "--trainer.enable_progress_bar=false", "--in-process")
    stop = "--trainer.callbacks+={class_path: tests.cli.test_run.StopAt, init_args: {batch: 4, name: SIGTERM}}"
    assert cli(*words, stop)[0] == 143
    text = (folder / "words.txt").read_text()
    (folder / "words.txt").write_text(text + "\n\none more paragraph of words")
    try:
        code, _, err = cli(*words, stop)
        assert code == 2 and "Traceback" not in err
        assert "the data is not that of the checkpoint: source words was 20 records" in err and "it is now 21" in err
        code, _, err = cli(*words, stop, "--data.allow_other_data=true")
        assert code in (0, 143) and "was cut off; continues from" in err, err
    finally:
        (folder / "words.txt").write_text(text)
