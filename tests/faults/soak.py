"""Kills a run again and again: `python -m tests.faults.soak KILLS SEED RUN WORD...`, words as of `mmframe`.

Everything is loaded once; each attempt is a child forked from here before anything was computed, so that fifty of them
take a minute.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import tests.faults.parts  # noqa: F401  with torch and Lightning
from mmframe import registry
from mmframe.cli import lightning_cli, main  # noqa: F401

DEADLINE = 300.0
"""Seconds without progress, after which something hangs."""


def attempt(words: list[str]) -> int:
    """Starts the run in a child; its process id."""
    if pid := os.fork():
        return pid
    try:
        code = main.main(words)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        code = 99
    sys.stderr.flush()
    os._exit(code)


def lines(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def soak(kills: int, seed: int, run: Path, words: list[str]) -> int:
    """Kills at random steps, and at a random moment of each; then lets the run end. Its exit code."""
    draws, killed = random.Random(seed), 0
    registry.discover()
    while True:
        pid, begun, seen = attempt(words), time.monotonic(), lines(run / "metrics.jsonl")
        more = draws.randrange(0, 4)  # 0: while it starts
        wait = draws.uniform(0, 0.03)
        while killed < kills and lines(run / "metrics.jsonl") < seen + more:
            if os.waitpid(pid, os.WNOHANG)[0] or time.monotonic() - begun > DEADLINE:
                return 98  # it ended by itself, or hangs
            time.sleep(0.002)
        if killed == kills:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(wait)
        os.kill(pid, signal.SIGKILL)
        if os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
            killed += 1


if __name__ == "__main__":
    sys.exit(soak(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
