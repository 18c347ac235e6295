"""A queue of commands over slots: time limit, one more try, and signals that reach every process. No torch."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["waiting", "running", "done", "failed", "stopped"]
BUSY = 75
"""Exit code of a command that found another process at its work: it is asked again, until that one is done."""


@dataclass
class Task:
    """A command, and how it goes.

    Args:
        name: Unique.
        command: Words.
        log: Its output is appended to this file.
    """

    name: str
    command: Sequence[str]
    log: Path
    state: State = "waiting"
    attempts: int = 0
    reason: str = ""
    begun: float = 0.0
    ended: float = 0.0
    not_before: float = 0.0
    slot: int = -1
    process: Any = field(default=None, repr=False)
    killed: float = 0.0


class Queue:
    """Runs tasks, as many at once as there are slots.

    Args:
        tasks: In order.
        slots: Environment variables of each slot.
        timeout: Seconds that an attempt may take; None: no limit.
        tries: Attempts of a task that fails; a user's mistake (exit code 2) is not tried again.
        on_change: Is told of every task whose state has changed.
        on_tick: Is called a few times a second.
        busy_wait: Seconds until a task is asked again whose work another process has.
        grace: Seconds between SIGTERM and SIGKILL: a run that is told to stop writes a checkpoint.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        slots: Sequence[dict[str, str]],
        timeout: float | None = None,
        tries: int = 2,
        on_change: Callable[[Task], None] = lambda task: None,
        on_tick: Callable[[], None] = lambda: None,
        busy_wait: float = 5.0,
        grace: float = 60.0,
    ) -> None:
        self.tasks, self.slots = list(tasks), list(slots)
        self.timeout, self.tries, self.busy_wait, self.grace = timeout, tries, busy_wait, grace
        self.on_change, self.on_tick = on_change, on_tick
        self.stopped_by = 0
        """The signal that ended the sweep, or 0."""

    def run(self) -> None:
        """Returns when every task is done or has failed, or a signal has stopped them all."""
        with self._signals():
            while any(task.state in ("waiting", "running") for task in self.tasks):
                for task in self.tasks:
                    if task.state == "running":
                        self._look_at(task)
                if self.stopped_by:
                    self._stop()
                    return
                self._start_waiting()
                self.on_tick()
                time.sleep(0.1)

    def _start_waiting(self) -> None:
        taken = {task.slot for task in self.tasks if task.state == "running"}
        free = [slot for slot in range(len(self.slots)) if slot not in taken]
        ready = (t for t in self.tasks if t.state == "waiting" and t.not_before <= time.monotonic())
        for slot, task in zip(free, list(ready), strict=False):
            self._start(task, slot)

    def _start(self, task: Task, slot: int) -> None:
        task.log.parent.mkdir(parents=True, exist_ok=True)
        task.attempts += 1
        task.slot, task.begun, task.killed, task.state = slot, time.monotonic(), 0.0, "running"
        with task.log.open("ab") as log:
            log.write(f"--- attempt {task.attempts}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
            log.flush()
            task.process = subprocess.Popen(
                list(task.command),
                env={**os.environ, **self.slots[slot]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the whole group can be killed, and a terminal's Ctrl-C comes through us
            )
        self.on_change(task)

    def _look_at(self, task: Task) -> None:
        code = task.process.poll()
        if code is None:
            passed = time.monotonic() - task.begun
            if self.timeout is not None and passed > self.timeout:
                self._end(task, hard=bool(task.killed) and time.monotonic() - task.killed > self.grace)
            return
        task.ended = time.monotonic()
        kill_group(task.process.pid)  # what it may have left behind
        if code == BUSY and not task.killed:
            task.attempts -= 1
            task.state, task.not_before = "waiting", time.monotonic() + self.busy_wait
            task.reason = "another sweep has it"
        elif code == 0:
            task.state, task.reason = "done", ""
        else:
            late = f"took longer than {self.timeout:g} s" if task.killed and self.timeout else ""
            task.reason = late or f"exit code {code}: {last_line(task.log)}"
            again = task.attempts < self.tries and code != 2
            task.state = "waiting" if again else "failed"
        self.on_change(task)

    def _end(self, task: Task, hard: bool) -> None:
        """Tells a task to stop; when that was told before and nothing came of it, kills its process group."""
        if hard:
            kill_group(task.process.pid)
        elif not task.killed:
            task.killed = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                task.process.send_signal(signal.SIGTERM)

    def _stop(self) -> None:
        """Every run writes a checkpoint and ends; a second signal, or the end of `grace`, kills what is left."""
        first, deadline = self.stopped_by, time.monotonic() + self.grace
        running = [task for task in self.tasks if task.state == "running"]
        self.stopped_by = 0
        for task in running:
            self._end(task, hard=False)
        while any(task.process.poll() is None for task in running):
            if self.stopped_by or time.monotonic() > deadline:
                for task in running:
                    kill_group(task.process.pid)
                deadline = time.monotonic() + self.grace
            time.sleep(0.05)
        for task in running:
            kill_group(task.process.pid)
            task.state = "stopped"
            self.on_change(task)
        self.stopped_by = first

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def noted(signum: int, frame: Any) -> None:
            self.stopped_by = signum

        before = {}
        try:
            before = {number: signal.signal(number, noted) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not in the main thread: signals stay with whoever has them
            pass
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def kill_group(pid: int) -> None:
    """Kills a process group that we started, if anything of it is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("mmframe: error: ")[:300] if lines else ""


def this_program() -> list[str]:
    """The words that start mmframe."""
    return [sys.executable, "-m", "mmframe"]
