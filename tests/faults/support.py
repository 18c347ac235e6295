"""Words of the command line, and comparisons, that the tests of faults share."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

HERE = "tests.faults.parts"
DENSE = [
    *("fit", "--config", "toy/dense", "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"),
    *("--trainer.log_every_n_steps=1", "--data.size=64", "--data.batch_size=4"),
]


def callback(name: str, /, **arguments: object) -> str:
    """The flag that adds a callback of tests.faults.parts."""
    told = ", ".join(f"{key}: {value}" for key, value in arguments.items())
    return f"--trainer.callbacks+={{class_path: {HERE}.{name}, init_args: {{{told}}}}}"


def objective(name: str, /, **arguments: object) -> str:
    told = ", ".join(f"{key}: {value}" for key, value in arguments.items())
    return f"--model.objective={{class_path: {HERE}.{name}, init_args: {{{told}}}}}"


def assert_same_weights(*runs: Path) -> None:
    one, other = (load_file(run / "weights.safetensors") for run in runs)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
