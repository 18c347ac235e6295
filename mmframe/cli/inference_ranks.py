"""Several processes that answer together: started by torchrun, they hold one model, and the first of them speaks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mmframe.errors import UserError

if TYPE_CHECKING:  # torch is loaded only to run something
    import torch
    from torch import nn


def count() -> int:
    """Processes of this launch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_first() -> bool:
    """Whether this process reads and writes files, and speaks."""
    return rank() == 0


def device_word(given: str) -> str:
    """`--device` of this process: each of several takes a GPU of its own.

    Raises:
        UserError: one GPU was named for all of them.
    """
    if count() == 1:
        return given
    import torch

    if given == "auto":
        given = "cuda" if torch.cuda.is_available() else "cpu"
    if given.startswith("cuda:"):
        raise UserError(f"--device {given}: {count()} processes were started; give cuda, and each takes its own")
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if given == "cuda" else given


def join(device: torch.device | str) -> None:
    """Makes the processes known to one another; nothing where there is one."""
    if count() == 1:
        return
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if torch.device(device).type == "cuda" else "gloo")


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        import torch

        torch.distributed.barrier()


def spread(net: nn.Module, device: torch.device | str) -> None:
    """Spreads a model over the processes.

    Raises:
        UserError: as mmframe.tensor_parallel.spread.
    """
    if count() == 1:
        return
    import torch
    from torch.distributed.device_mesh import init_device_mesh

    from mmframe import tensor_parallel

    tensor_parallel.spread(net, init_device_mesh(torch.device(device).type, (count(),)))
