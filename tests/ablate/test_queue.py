"""The queue, with commands that stand in for runs."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from mmframe.ablate.queue import BUSY, Queue, Task


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def done(tmp_path: Path, *codes: str, slots: int = 1, **options) -> list[Task]:
    tasks = [Task(str(n), python(code), tmp_path / f"{n}.log") for n, code in enumerate(codes)]
    Queue(tasks, [{"SLOT": str(n)} for n in range(slots)], **options).run()
    return tasks


def test_every_task_runs_once_in_a_slot_of_its_own(tmp_path: Path) -> None:
    code = "import os, time; print(os.environ['SLOT'], time.time()); time.sleep(0.3); print(time.time())"
    tasks = done(tmp_path, *[code] * 4, slots=2)
    assert [task.state for task in tasks] == ["done"] * 4 and [task.attempts for task in tasks] == [1] * 4
    spans: dict[str, list[tuple[float, float]]] = {"0": [], "1": []}
    for task in tasks:
        _, first, end = task.log.read_text().splitlines()
        slot, begun = first.split()
        spans[slot].append((float(begun), float(end)))
    for one, other in spans.values():
        assert one[1] <= other[0] or other[1] <= one[0], "one after another in a slot"


def test_a_failure_is_tried_once_more_and_told_with_its_last_line(tmp_path: Path) -> None:
    flaky = (
        f"import os, sys; p = {str(tmp_path / 'once')!r}; there = os.path.exists(p); open(p, 'w'); sys.exit(not there)"
    )
    tasks = done(tmp_path, flaky, "import sys; print('out of memory'); sys.exit(3)", "import sys; sys.exit(2)")
    assert [(task.state, task.attempts) for task in tasks] == [("done", 2), ("failed", 2), ("failed", 1)]
    assert tasks[1].reason == "exit code 3: out of memory"
    assert tasks[1].log.read_text().count("out of memory") == 2, "both attempts are in the log"


def test_what_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    """It ignores SIGTERM and has a child: both are killed."""
    child = f"import time; open({str(tmp_path / 'child')!r}, 'w').write(str(__import__('os').getpid())); time.sleep(60)"
    deaf = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"subprocess.Popen([sys.executable, '-S', '-c', {child!r}]); time.sleep(60)"
    )
    begun = time.monotonic()
    (task,) = done(tmp_path, deaf, timeout=1.0, grace=0.3, tries=1)
    assert task.state == "failed" and task.reason == "took longer than 1 s" and time.monotonic() - begun < 20
    pid = int((tmp_path / "child").read_text())
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    for _ in range(50):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return False
        except OSError:
            return False
        time.sleep(0.05)
    return True


def test_work_that_another_process_has_is_asked_for_again(tmp_path: Path) -> None:
    first = f"import os, sys; p = {str(tmp_path / 'once')!r}; there = os.path.exists(p); open(p, 'w');"
    code = f"{first} sys.exit(0 if there else {BUSY})"
    (task,) = done(tmp_path, code, busy_wait=0.1)
    assert task.state == "done" and task.attempts == 1


def test_a_signal_goes_on_to_every_run_and_none_starts_after_it(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit('told to stop'));"
        "print('up', flush=True); time.sleep(60)"
    )
    tasks = [Task(str(n), python(code), tmp_path / f"{n}.log") for n in range(3)]
    queue = Queue(tasks, [{}, {}])

    def press() -> None:
        while not all(t.log.is_file() and "up" in t.log.read_text() for t in tasks[:2]):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    queue.run()
    thread.join()
    assert queue.stopped_by == signal.SIGINT
    assert [task.state for task in tasks] == ["stopped", "stopped", "waiting"]
    assert all("told to stop" in task.log.read_text() for task in tasks[:2])
