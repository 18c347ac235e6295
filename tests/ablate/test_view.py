"""The view of the sweep, SLURM arrays, and slots."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmframe.ablate import slots as slots_module
from mmframe.ablate.grid import Grid
from mmframe.ablate.plan import Run
from mmframe.ablate.queue import Task
from mmframe.ablate.run_folder import RunFolder
from mmframe.ablate.slots import slots
from mmframe.ablate.slurm import write_array
from mmframe.ablate.view import SweepView
from mmframe.errors import UserError

from .conftest import pretend

Planned = Callable[..., tuple[Grid, list[Run]]]


def test_the_view_tells_what_runs_and_how_long_it_will_take(planned: Planned, tmp_path: Path) -> None:
    _, runs = planned()
    folders = {run.hash: RunFolder(tmp_path, run) for run in runs}
    tasks = [Task(run.hash, [], tmp_path / "log") for run in runs[1:]]
    view = SweepView(folders, done_before=1, stream=io.StringIO())
    view._begun = 0.0
    assert view.lines(tasks, 1.0) == ["[##..........] 1/6  0 running  5 waiting  0 failed"]
    pretend(tmp_path, runs[1], 3.0)
    tasks[0].state, tasks[1].state = "done", "running"
    running = folders[runs[2].hash].path
    running.mkdir(parents=True)
    rows = [{"step": n, "train/loss": 2.5, "train/tokens_per_s": 1234.0} for n in range(4)]
    (running / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    head, line = view.lines(tasks, 60.0)
    assert head == "[####........] 2/6  1 running  3 waiting  0 failed  2:20 left", "12 of 40 steps in a minute"
    assert line == "  none-s2  step 4/8  loss 2.500  1.2k tok/s"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_block_and_a_file_has_lines(planned: Planned, tmp_path: Path) -> None:
    _, runs = planned(seeds=[0])
    folders = {run.hash: RunFolder(tmp_path, run) for run in runs}
    tasks = [Task(run.hash, [], tmp_path / "log") for run in runs]
    for stream, clears in ((Terminal(), 1), (io.StringIO(), 0)):
        view = SweepView(folders, stream=stream, seconds=0, log_seconds=0)
        view.tick(tasks)
        view.tick(tasks)
        assert stream.getvalue().count("0/2") == 2 and stream.getvalue().count("\033[1A\033[J") == clears
    quiet = SweepView(folders, stream=io.StringIO())
    quiet.tick(tasks, time.monotonic() + 50)
    assert quiet.stream.getvalue() == ""  # type: ignore[attr-defined]


def test_an_array_has_a_line_for_each_run_that_runs_by_itself(planned: Planned, tmp_path: Path) -> None:
    grid, runs = planned()
    file = tmp_path / "jobs" / "array.sh"
    listed = write_array(
        file, grid.name, runs, ["mmframe", "ablate", "a grid.yaml"], gpu=True, results=tmp_path / "out"
    )
    lines = [shlex.split(line, comments=True) for line in listed.read_text().splitlines()]
    assert lines == [["mmframe", "ablate", "a grid.yaml", "--run", run.hash] for run in runs]
    script = file.read_text()
    assert "--array=1-6" in script and "--gres=gpu:1" in script and str(listed) in script
    assert subprocess.run(["bash", "-n", file]).returncode == 0


def test_a_slot_for_each_gpu_or_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "usable_cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert slots(None, wants_gpu=True) == [
        {"OMP_NUM_THREADS": "8", "CUDA_VISIBLE_DEVICES": "2"},
        {"OMP_NUM_THREADS": "8", "CUDA_VISIBLE_DEVICES": "5"},
    ]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots(4, wants_gpu=True)] == ["2", "5", "2", "5"]
    assert slots(None, wants_gpu=False) == [{"OMP_NUM_THREADS": "16"}]
    assert slots(3, wants_gpu=False) == [{"OMP_NUM_THREADS": "5"}] * 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert slots(None, wants_gpu=True) == [{"OMP_NUM_THREADS": "16"}]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert slots(2, wants_gpu=False) == [{"OMP_NUM_THREADS": "3"}] * 2
    with pytest.raises(UserError, match="--jobs=17 is more than this machine has cores"):
        slots(17, wants_gpu=False)
