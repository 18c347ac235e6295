"""Two processes that are the ranks of one run: started once, given one case after another; a module of its own, so that
it can be spawned. Rank 1 says nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

Case = Callable[[int, Path], Any]
"""Runs on a rank (its number, the folder of the test); what it returns is saved for the tests."""


def _rank(rank: int, port: int, folder: str, cases: list[tuple[str, Case]]) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        LOCAL_RANK=str(rank),
        RANK=str(rank),
        NODE_RANK="0",
        WORLD_SIZE="2",
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    os.chdir(folder)
    for name, case in cases:
        try:
            with open(Path(folder, f"{name}.log{rank}"), "w") as log, contextlib.redirect_stderr(log):
                with contextlib.redirect_stdout(log):
                    made = case(rank, Path(folder))
        except BaseException:
            Path(folder, f"{name}.error{rank}").write_text(traceback.format_exc())
            os._exit(1)  # the other rank waits for this one: the launcher ends it
        torch.save(made, Path(folder, f"{name}.rank{rank}.pt"))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_two_ranks(folder: Path, cases: list[tuple[str, Case]], seconds: float = 280) -> None:
    """Runs all cases; a rank that fails, or hangs, is an error with its traceback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running: Any = mp.spawn(_rank, (port, str(folder), cases), nprocs=2, join=False)  # type: ignore[attr-defined]
    try:
        if not running.join(timeout=seconds) and not running.join(timeout=5):
            raise TimeoutError(f"two ranks did not finish in {seconds} s; {_errors(folder)}")
    except mp.ProcessExitedException as error:
        raise AssertionError(_errors(folder)) from error
    finally:
        for process in running.processes:
            if process.is_alive():
                process.kill()


def _errors(folder: Path) -> str:
    errors = "\n".join(file.read_text() for file in sorted(folder.glob("*.error*")))
    return errors or "no rank told why; " + ", ".join(sorted(f.name for f in folder.glob("*.rank*")))


def result(folder: Path, name: str, rank: int = 0) -> Any:
    return torch.load(folder / f"{name}.rank{rank}.pt", weights_only=False)
