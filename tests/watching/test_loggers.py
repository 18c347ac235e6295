"""W&B by one key; the utilisation's peak; the wait for data."""

from __future__ import annotations

import importlib
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.profilers import PassThroughProfiler

from mmframe.callbacks.data_wait import FETCH, WaitClock
from mmframe.callbacks.jsonl import read_metrics
from mmframe.callbacks.utilisation import peak_of
from mmframe.cli import loggers
from mmframe.cli.job import Handover, Job
from mmframe.cli.run_dir import RunDir
from mmframe.errors import UserError
from tests.cli.conftest import QUICK
from tests.cli.mixture_recipe import folder, mixture_folder  # noqa: F401  fixtures

STAGE = ["fit", "toy/evip", "--stage=s1_1_concept", *QUICK]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("fit", {}, RunDir(tmp_path / "two"), Handover(recipe="mine", stage="two"))


def test_wandb_is_told_what_follows_from_the_run(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: object())
    spec = loggers.filled_in("WandbLogger", job)
    again = loggers.filled_in({"class_path": "WandbLogger", "init_args": {"project": "ours", "offline": True}}, job)
    assert spec["init_args"]["name"] == "mine/two" and spec["dict_kwargs"] == {"group": "mine", "resume": "allow"}
    assert spec["init_args"]["save_dir"] == str(job.run.path)
    assert again["init_args"]["project"] == "ours" and again["init_args"]["offline"]
    assert again["init_args"]["id"] == spec["init_args"]["id"]  # a continued run finds its own
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    made = WandbLogger(**spec["init_args"], **spec["dict_kwargs"])  # the names are Lightning's
    assert made._wandb_init["group"] == "mine" and made._wandb_init["resume"] == "allow"
    for other in (None, True, False, "CSVLogger", {"class_path": "CSVLogger"}):
        assert loggers.filled_in(other, job) == other
    assert loggers.filled_in(["CSVLogger", "WandbLogger"], job) == ["CSVLogger", spec]


@pytest.mark.skipif(find_spec("wandb") is not None, reason="W&B is installed")
def test_without_wandb_one_line_says_so(job: Job) -> None:
    with pytest.raises(UserError, match=r"W&B is not installed; pip install 'mmframe\[wandb\]'"):
        loggers.filled_in(["CSVLogger", "WandbLogger"], job)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="W&B is not installed")
def test_wandb_offline(cli: Any, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    code, _, err = cli(*STAGE, "--trainer.logger=WandbLogger", "--run-dir=r")
    assert code == 0, err
    importlib.import_module("wandb").finish()
    assert list((elsewhere / "r/s1_1_concept/wandb").glob("offline-run-*/*.wandb"))
    assert read_metrics(elsewhere / "r/s1_1_concept")


def test_a_mixture_is_logged_by_its_sources(cli: Any, folder: Path) -> None:  # noqa: F811
    code, _, err = cli("fit", "mine.yaml", "--run-dir=watched", *QUICK, "--trainer.log_every_n_steps=4")
    assert code == 0, err
    line = read_metrics(folder / "watched")[-1]
    assert {"loss/source/talks", "loss/source/words", "loss/text_only", "loss/image", "loss/all"} <= set(line)
    assert {"lr/text", "lr/experts", "grad_norm/experts", "tokens/image", "memory/peak_rss_gib"} <= set(line)
    assert 0 < line["train/mfu"] < 1 and 0 < line["train/data_wait_share"] < 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder / "watched"))
    shown.Reload()
    assert {"loss/source/talks", "train/mfu", "lr/experts"} <= set(shown.Tags()["scalars"])
    code, out, _ = cli("runs", folder / "watched")
    assert code == 0 and out.splitlines()[1].split()[:2] == ["done", "4/4"]


def test_the_peak_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"NVIDIA H100 80GB HBM3": 989.4e12, "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA H200": 989.4e12}
    for name, flops in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_of(torch.device("cuda"), "bf16-true")[0] == flops
    none, why = peak_of(torch.device("cuda"), "32-true")
    assert none is None and "16 bits" in why
    for unknown in ("NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA GeForce RTX 4090"):  # other peaks
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=unknown: name)
        none, why = peak_of(torch.device("cuda"), "bf16-true")
        assert none is None and unknown in why
    state = torch.get_rng_state()
    peak, _ = peak_of(torch.device("cpu"), "32-true")
    assert peak is not None and peak > 0 and torch.equal(state, torch.get_rng_state())


def test_the_wait_is_that_of_the_fetch() -> None:
    clock, trainer = WaitClock(), SimpleNamespace(profiler=PassThroughProfiler())
    clock.watch(trainer)  # type: ignore[arg-type]
    clock.watch(trainer)  # type: ignore[arg-type]
    for action, seconds in ((f"[loop].{FETCH}", 0.02), ("backward", 0.05), (f"[loop].{FETCH}", 0.02)):
        with trainer.profiler.profile(action):
            time.sleep(seconds)
    waited = clock.taken()
    assert waited >= 0.04 and clock.taken() == 0
    with trainer.profiler.profile("backward"):
        time.sleep(0.01)
    assert clock.taken() == 0
