"""What one of two ranks runs in the tests of distributed training; a module of its own, so that it can be spawned."""

from __future__ import annotations

import datetime
import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed import destroy_process_group

from components.auxiliary.teacher_features import TeacherFeatures
from mmframe.batch import Batch
from mmframe.objectives import NextToken, Weighting
from tests.helpers import QKV_FFN, Recording, batch, fit, mixed_batch, roughen, tiny_embedder, tiny_module

STEPS: list[tuple[Batch, Batch]] = [
    (batch("tttTTT"), batch("tt[i]TT", "t[ii]tTTTT")),  # text-only, mixed
    (batch("ii"), batch("tTTT", "tT", seed=7)),  # image-only without a label, text-only
    (mixed_batch(seed=3), batch("i", seed=4)),  # mixed, image-only
    (batch("tTTTTTTTT", seed=5), batch("tttT", seed=6)),  # no image anywhere
    (batch(""), batch("tt[i]TT|tTTTTT", "t[i]/tTTTT/tT", seed=8)),  # no tokens at all, packed rows
    (batch("tT", "tTTTT", seed=9), batch("", "")),
]
"""What each of the two ranks sees, one micro-batch after another."""
RUNS: list[tuple[Weighting, int, bool]] = [("token", 1, False), ("sample", 1, False), ("sqrt", 2, True)]
"""Weighting of the loss, micro-batches of a step, whether an auxiliary loss with a head stands beside it."""


def ranked_module(weighting: Weighting, with_teacher: bool) -> Recording:
    teacher = None
    if with_teacher:
        embedder = tiny_embedder(hidden_size=6)
        roughen(embedder)
        teacher = {"teacher": TeacherFeatures(embedder=embedder, layers="0")}
    module = tiny_module(QKV_FFN, objective=NextToken(weighting), auxiliary=teacher, module_class=Recording)
    assert isinstance(module, Recording)
    return module


def train(rank: int, port: int, folder: str) -> None:
    """Trains under the real Trainer with DDP over gloo and leaves weights and gradients in a file."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2"
    )
    torch.set_num_threads(1)
    results = []
    for weighting, accumulate, with_teacher in RUNS:
        module = ranked_module(weighting, with_teacher)
        strategy = DDPStrategy(process_group_backend="gloo", timeout=datetime.timedelta(seconds=120))
        micro_batches = [step[rank] for step in STEPS]
        fit(module, micro_batches, devices=2, strategy=strategy, accumulate_grad_batches=accumulate)
        weights = module.net.state_dict() | module.auxiliary.state_dict(prefix="auxiliary.")
        results.append({"weights": weights, "gradients": module.recorded})
    torch.save(results, Path(folder, f"rank{rank}.pt"))
    destroy_process_group()


def train_two_ranks(folder: Path, seconds: float = 200) -> list[list[dict[str, Any]]]:
    """Of each rank and run, the weights after `STEPS` and the gradients of each step; a hang is a TimeoutError."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running: Any = mp.spawn(train, (port, str(folder)), nprocs=2, join=False)  # type: ignore[attr-defined]
    try:
        if not running.join(timeout=seconds) and not running.join(timeout=5):
            raise TimeoutError(f"two ranks did not finish {len(STEPS)} steps in {seconds} s")
    finally:
        for process in running.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
