"""What each of two ranks runs in the test of tasks in training; a module of its own, so that it can be spawned."""

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

from components.freezing.delta_tuning import VisualParameters
from components.routers.modality import ModalityRouter
from mmframe.callbacks.task_scores import TaskScores
from mmframe.module import MultimodalModule
from mmframe.optim import AdamWSchedule
from mmframe.processing import ByteTokenizer, ChatProcessor
from tests.helpers import fit, mixed_batch, roughen, snapshot, tiny_embedder, tiny_llama


def scores_of_a_run(folder: Path, tasks: list[str], **options: Any) -> dict[str, Any]:
    """Two steps with all tasks asked before, between and after: the last scores and weights of this rank."""
    backbone, embedder = tiny_llama(vocab_size=320), tiny_embedder()
    roughen(backbone, seed=1)
    roughen(embedder, seed=2)
    module = MultimodalModule(
        backbone=backbone,
        patch_embedder=embedder,
        router=ModalityRouter({"ffn": "all"}),
        freezing=VisualParameters(embedder_lr=1e-2, experts_lr=1e-2),
        processor=ChatProcessor(ByteTokenizer()),
        optim=AdamWSchedule(warmup_steps=1, schedule="constant"),
        expert_backend="torch",
    )
    callbacks = [TaskScores(tasks, every=1, limit=7, batch_size=2, against="start")]
    batches = [mixed_batch(seed=3), mixed_batch(seed=4)]
    trainer = fit(module, batches, callbacks=callbacks, default_root_dir=folder, **options)
    scores = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("tasks/toy")}
    return {"scores": scores, "weights": snapshot(module.net)}


def _run(rank: int, port: int, folder: str, tasks: list[str]) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2"
    )
    torch.set_num_threads(1)
    strategy = DDPStrategy(process_group_backend="gloo", timeout=datetime.timedelta(seconds=60))
    found = scores_of_a_run(Path(folder), tasks, devices=2, strategy=strategy)
    torch.save(found, Path(folder, f"rank{rank}.pt"))
    destroy_process_group()


def ask_two_ranks(folder: Path, tasks: list[str], seconds: float = 250) -> list[dict[str, Any]]:
    """`scores_of_a_run` of both ranks; a hang is a TimeoutError."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running: Any = mp.spawn(_run, (port, str(folder), tasks), nprocs=2, join=False)  # type: ignore[attr-defined]
    try:
        if not running.join(timeout=seconds) and not running.join(timeout=5):
            raise TimeoutError(f"two ranks did not finish in {seconds} s")
    finally:
        for process in running.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
