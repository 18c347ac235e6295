"""What `mmframe runs` and `mmframe watch` say of run directories, made by hand: who lives, who is dead, and why."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmframe.cli.progress_line import age, sparkline
from mmframe.cli.run_state import chain_text, look
from mmframe.cli.watch import Follower, View

ELSEWHERE = "another-machine"


def make_run(folder: Path, phase: str | None, pid: int, host: str | None = None, step: int = 3, **beat: object) -> Path:
    """A run directory as a run with this last heartbeat leaves it; phase None: before the first one."""
    host = host or socket.gethostname()
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("seed_everything: 0\ntrainer:\n  accelerator: cpu\n  max_steps: 8\n")
    meta = {"recipe": "mine", "stage": folder.name, "attempts": [{"pid": pid, "host": host}]}
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / ".lock").write_text(str(pid))
    if phase:
        told = {"phase": phase, "pid": pid, "host": host, "step": step, "steps": 8, **beat}
        (folder / "heartbeat.json").write_text(json.dumps(told))
        lines = [
            {"step": n, "attempt": 1, "time": 1000.0 + 2 * n, "train/loss": 4.0 - n, "train/tokens_per_s": 1500.0}
            for n in range(step)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def gone() -> int:
    """Number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_states(tmp_path: Path, gone: int) -> None:
    mine = os.getpid()
    cases = {
        "running": make_run(tmp_path / "a", "training", mine),
        "starting": make_run(tmp_path / "b", None, mine),
        "dead": make_run(tmp_path / "c", "training", gone),
        "stopped": make_run(tmp_path / "d", "stopped", gone),
        "failed": make_run(tmp_path / "e", "failed", gone, error="the loss is nan"),
    }
    for state, folder in cases.items():
        assert look(folder).state == state
    assert look(cases["failed"]).why == "the loss is nan" and look(cases["dead"]).why == f"process {gone} is gone"
    (cases["dead"] / "done.json").write_text(json.dumps({"steps": 8, "metrics": {}}))
    assert look(cases["dead"]).state == "done" and look(cases["dead"]).step == 8
    run = look(cases["running"])
    assert (run.recipe, run.stage, run.step, run.steps, run.loss, run.tokens_per_s) == ("mine", "a", 3, 8, 2.0, 1500.0)


def test_a_process_of_the_same_number_is_another_one(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "old", "training", os.getpid())
    os.utime(folder / ".lock", (1000, 1000))  # long before this process began
    assert look(folder).state == "dead"


def test_on_another_machine_only_silence_tells(tmp_path: Path, gone: int) -> None:
    folder = make_run(tmp_path / "far", "training", gone, host=ELSEWHERE)
    assert look(folder).state == "running"
    later = look(folder, now=time.time() + 600)
    assert later.state == "dead" and later.why == f"no sign of life from {ELSEWHERE}"


def test_a_heartbeat_of_the_attempt_before_says_nothing(tmp_path: Path, gone: int) -> None:
    folder = make_run(tmp_path / "again", "stopped", gone)
    meta = json.loads((folder / "meta.json").read_text())
    meta["attempts"].append({"pid": os.getpid(), "host": socket.gethostname()})
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / ".lock").write_text(str(os.getpid()))
    assert look(folder).state == "starting"


@pytest.fixture
def chain(tmp_path: Path, gone: int) -> Path:
    root = tmp_path / "runs" / "mine"
    make_run(root / "one", "done", gone, step=8)
    (root / "one" / "done.json").write_text(json.dumps({"steps": 8}))
    make_run(root / "two", "training", os.getpid())
    (root / "chain.json").write_text(chain_text("mine", {"one": 8, "two": 8, "three": 24}))
    return root


def test_runs(cli, fails, chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(chain.parents[1])
    make_run(chain.parent / "broken", "failed", 1, error="out of paper")
    make_run(chain.parent / "mine.old-1", "stopped", 1)
    code, out, _ = cli("runs")
    lines = out.splitlines()
    assert code == 0 and [line.split()[:2] for line in lines[1:]] == [
        ["failed", "3/8"], ["out", "of"], ["done", "8/8"], ["running", "3/8"]
    ]  # fmt: skip
    _, out, _ = cli("runs", "runs", "--json", "--all")
    assert {run["state"] for run in json.loads(out)} == {"failed", "done", "running", "stopped"}
    (chain / "three").mkdir()
    (chain / "three" / "recipe.yaml").touch()  # its process has not got further than this
    (chain / "chain.json").write_text(chain_text("a/recipe", {"one": 8, "two": 8, "three": 24}))
    assert (look(chain / "three").recipe, look(chain / "three").stage) == ("a/recipe", "three")
    assert "nowhere is no folder" in fails("runs", "nowhere")
    assert "--json" in fails("runs", "--jsn")


def test_watch_shows_the_whole_chain(cli, fails, chain: Path, tmp_path: Path) -> None:
    code, out, _ = cli("watch", chain, "--once")
    lines = out.splitlines()
    assert code == 0 and lines[0] == f"mine  {chain}"
    assert lines[1].split()[:4] == ["one", "done", "[############]", "8/8"]
    assert lines[2].split()[:4] == ["two", "running", "[####........]", "3/8"] and "loss 2.000 █▅▁" in lines[2]
    assert "1.5k tok/s" in lines[3] and "0:10 left" in lines[3] and "no checkpoint yet" in lines[3]
    assert lines[4].split()[:2] == ["three", "waiting"] and lines[4].endswith("0/24")
    assert lines[5].strip() == "chain [#####...............] 11/40 steps"
    assert "holds no run" in fails("watch", tmp_path / "runs")


def test_a_view_ends_when_the_run_is_done(chain: Path) -> None:
    view = View(chain / "two")
    assert view.lines() and not view.done
    (chain / "two" / "done.json").write_text(json.dumps({"steps": 8}))
    assert view.lines() and view.done


def test_metrics_are_read_on(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    follower = Follower(tmp_path)
    follower.read()  # not there yet
    file.write_text('{"step": 1, "attempt": 1, "time": 10, "train/loss": 3}\n{"step": 2, "attempt": 1, "time": 12, "tr')
    follower.read()
    assert follower.losses == {1: 3.0}
    with open(file, "a") as stream:
        stream.write('ain/loss": 2}\n{"step": 3, "attempt": 1, "time": 14, "train/loss": 1}\n')
    follower.read()
    assert follower.losses == {1: 3.0, 2: 2.0, 3: 1.0} and follower.seconds_per_step == 2
    with open(file, "a") as stream:  # killed, and continued from step 2
        stream.write('{"step": 2, "attempt": 2, "time": 99, "train/loss": 2.5}\n')
    follower.read()
    assert follower.losses == {1: 3.0, 2: 2.5} and follower.seconds_per_step == 0
    file.write_text('{"step": 0, "attempt": 1, "time": 1, "train/loss": 9}\n')  # started over
    follower.read()
    assert follower.losses == {0: 9.0}


def test_neither_loads_torch(chain: Path) -> None:
    code = (
        "import sys; from mmframe.cli.main import main; main(['runs', sys.argv[1]]); main(['watch', sys.argv[1]]); "
        "main(['watch', '--help']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(chain)], check=True, capture_output=True)


def test_ages_and_sparklines() -> None:
    assert [age(x) for x in (0, 59, 61, 7200, 200_000)] == ["0 s", "59 s", "1 min", "2 h", "2 d"]
    assert sparkline([1, 2, 3]) == "▁▅█" and sparkline([5, 5]) == "▁▁" and sparkline([float("nan")]) == ""
    assert len(sparkline(range(1000))) == 20
