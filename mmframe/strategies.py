"""Strategies of the trainer by name: `--trainer.strategy=fsdp2`, `zero1`, `deepspeed_zero1`, beside Lightning's own.

All of them are Lightning's on torch.distributed, with what our models need: see docs/distributed.md.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, StrategyRegistry

from mmframe.checkpoint_files import seal
from mmframe.errors import UserError


class FullySharded(ModelParallelStrategy):
    """FSDP2 over all ranks: weights, gradients and optimiser state are spread (ZeRO-3); units: mmframe.sharding.

    Args:
        sharded_checkpoints: A checkpoint is a folder with a file of each rank, written by all of them at once; false:
            one file that rank 0 writes, which any strategy reads.
        kwargs: Of ModelParallelStrategy (timeout, process_group_backend).
    """

    def __init__(self, sharded_checkpoints: bool = True, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=sharded_checkpoints, **kwargs)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """A folder gets its name only when every rank has written its part; the one before stays until then."""
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path = Path(self.broadcast(filepath))
        made, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
        if self.global_rank == 0:
            for left in (made, old):
                shutil.rmtree(left, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, made, storage_options)
        self.barrier()
        if self.global_rank == 0:
            seal(made)
            _sync(made)
            if path.exists():
                path.rename(old)
            made.rename(path)
            _sync(path.parent)
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
        self.barrier()


class ZeroOne(DDPStrategy):
    """DDP whose optimiser state is spread over the ranks (ZeRO-1, arXiv 1910.02054), with torch alone.

    Every rank has all weights and gradients, steps its share of them and sends it to the others. Checkpoints are as
    those of ddp: one file, with the whole state.
    """

    strategy_name = "zero1"

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        optimizer.consolidate_state_dict()  # mmframe.spread_optim
        return optimizer.state_dict() if self.is_global_zero else {}


def _sync(folder: Path) -> None:
    """Files of a folder, and its list of names, onto the disk."""
    for path in (*filter(Path.is_file, folder.iterdir()), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def spreads_optimizer(strategy: Any) -> bool:
    """Whether torch's ZeRO-1 is to wrap the optimiser."""
    return isinstance(strategy, ZeroOne)


def is_deepspeed(strategy: Any) -> bool:
    """Whether DeepSpeed runs the step: it then owns gradients and optimiser."""
    return type(strategy).__name__.startswith("DeepSpeed")


def register() -> None:
    """Makes the names known to the trainer; Lightning's own (ddp, auto, ...) stay as they are."""
    ours: dict[str, tuple[Any, str]] = {
        "fsdp2": (FullySharded, "weights, gradients and optimiser state spread (FSDP2)"),
        "zero1": (ZeroOne, "DDP with the optimiser state spread (ZeRO-1, torch alone)"),
        "deepspeed_zero1": (_deepspeed, "DeepSpeed ZeRO-1, as the paper"),
    }
    for name, (make, description) in ours.items():
        if name not in StrategyRegistry:
            StrategyRegistry.register(name, make, description=description)


def _deepspeed(**settings: Any) -> Any:
    if find_spec("deepspeed") is None:
        raise UserError(
            "trainer.strategy: deepspeed_zero1 needs DeepSpeed: pip install 'mmframe[deepspeed]'; zero1 divides memory "
            "alike and needs nothing"
        )
    from mmframe.deepspeed_strategy import DeepSpeedZeroOne

    return DeepSpeedZeroOne(**settings)
