"""Several processes of one command on this machine, with the environment that torchrun gives. No torch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

POLL, PATIENCE = 0.1, 5.0  # seconds between two looks; for a rank to end by itself


def launch(words: list[str], ranks: int) -> int:
    """Runs `mmframe WORDS` as so many ranks; where one fails the others are ended.

    Args:
        words: The command.
        ranks: Processes.

    Returns:
        0, or the exit code of the rank that failed first.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks)), **os.environ}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "mmframe", *words], env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(ranks)
    ]
    try:
        while True:
            codes = [process.poll() for process in processes]
            failed = next((code for code in codes if code), None)
            if failed is not None:
                _wait(processes, PATIENCE)  # they say themselves what was wrong
                return failed if failed > 0 else 128 - failed
            if all(code == 0 for code in codes):
                return 0
            time.sleep(POLL)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        _wait(processes, PATIENCE)
        for process in processes:
            process.kill()


def _wait(processes: Sequence[subprocess.Popen], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(process.poll() is None for process in processes):
        time.sleep(POLL)
