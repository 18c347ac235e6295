"""What a run directory says of its run, without the run: done, running, stopped, failed, dead. No torch."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mmframe.cli.run_dir import read_json
from mmframe.metrics_file import rows_of

HEARTBEAT = "heartbeat.json"
CHAIN = "chain.json"
TAIL = 16_384
"""Bytes at the end of metrics.jsonl in which the last figures are looked for."""
SILENT = 180.0
"""Seconds without a sign of life, on another machine, after which a run counts as dead; more where steps are slow."""
AT_WORK = ("training", "validating", "done")  # after its last step it still writes weights

Doing = Literal["waiting", "starting", "running", "done", "stopped", "failed", "dead"]


@dataclass(frozen=True)
class RunState:
    """One stage's run as its directory shows it.

    Attributes:
        path: The directory.
        recipe: Name of the recipe.
        stage: "" for a recipe without stages.
        state: waiting: not begun. starting: a process is there, training has not begun. running. done. stopped: told
            to (SIGTERM, Ctrl-C). failed: with an error. dead: its process is gone or silent, and it has not said why.
            The same command continues the last three.
        why: of failed and dead, in words.
        step: optimiser steps done.
        steps: in all; 0 where that is not known.
        loss: as last logged.
        tokens_per_s: as last logged.
        seconds: since its last sign of life.
    """

    path: str
    recipe: str
    stage: str
    state: Doing
    why: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_s: float | None = None
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of one stage."""
    return (folder / "recipe.yaml").is_file() or (folder / "done.json").is_file()


def look(folder: Path, now: float | None = None) -> RunState:
    """The state of one run.

    Args:
        folder: The run directory of a stage.
        now: Unix time; default: the clock's.
    """
    now = time.time() if now is None else now
    beat, meta, done = (read_json(folder / name) for name in (HEARTBEAT, "meta.json", "done.json"))
    rows = _last_rows(folder / "metrics.jsonl")
    last: dict[str, Any] = {}
    for row in rows:
        last |= {key: value for key, value in row.items() if value is not None}
    step = max(int(beat.get("step") or 0), int(done.get("steps") or 0)) or int(last.get("step", -1)) + 1
    alive = now - _last_sign(folder, now)
    state, why = _doing(folder, beat, meta, bool(done), alive, _seconds_per_step(rows))
    return RunState(
        path=str(folder),
        recipe=str(meta.get("recipe") or beat.get("recipe") or _place(folder)[0]),
        stage=str(meta.get("stage") or beat.get("stage") or _place(folder)[1]),
        state=state,
        why=why,
        step=step,
        steps=max(0, int(beat.get("steps") or 0)) or _asked_steps(folder) or (step if done else 0),
        loss=_number(last.get("train/loss", done.get("metrics", {}).get("train/loss"))),
        tokens_per_s=_number(last.get("train/tokens_per_s")),
        seconds=max(0.0, alive),
    )


def _doing(
    folder: Path, beat: dict[str, Any], meta: dict[str, Any], done: bool, alive: float, per_step: float
) -> tuple[Doing, str]:
    if done:
        return "done", ""
    attempt = (meta.get("attempts") or [{}])[-1]
    begun = beat.get("pid") == attempt.get("pid")  # else the heartbeat is of an attempt before
    phase = beat.get("phase") if begun else None
    if phase == "stopped":
        return "stopped", ""
    if phase == "failed":
        return "failed", str(beat.get("error", ""))
    host = attempt.get("host", socket.gethostname())
    pid = attempt.get("pid") or _lock_pid(folder)
    if host == socket.gethostname():
        # a lock that a later attempt has taken is newer than the record of the one before
        lives = any(_lives(p, folder) for p in {pid, _lock_pid(folder)} if p)
        if lives:
            return ("running" if phase in AT_WORK else "starting"), ""
        return ("dead", f"process {pid} is gone") if pid else ("waiting", "")
    if alive > max(SILENT, 5 * per_step):
        return "dead", f"no sign of life from {host}"
    return ("running" if phase in AT_WORK else "starting"), ""


def _lock_pid(folder: Path) -> int:
    try:
        return int((folder / ".lock").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def _lives(pid: int, folder: Path) -> bool:
    """Whether the process that took the folder's lock is still there, and not another one of its number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's: it lives
    if _is_zombie(pid):
        return False
    started = _start_time(pid)
    try:
        return started is None or started <= (folder / ".lock").stat().st_mtime + 5
    except OSError:
        return True


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _is_zombie(pid: int) -> bool:
    return _stat(pid)[:1] == ["Z"]


def _start_time(pid: int) -> float | None:
    """Unix time at which a process began; None where the system does not tell."""
    fields = _stat(pid)
    try:
        booted = next(line for line in Path("/proc/stat").read_text(encoding="utf-8").splitlines() if "btime" in line)
        return int(booted.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _last_sign(folder: Path, now: float) -> float:
    """When the run last wrote something, by the file system's clock."""
    files = [folder / name for name in (HEARTBEAT, "metrics.jsonl", "meta.json", "done.json")]
    return max((file.stat().st_mtime for file in files if file.is_file()), default=now)


def _last_rows(file: Path) -> list[dict[str, Any]]:
    try:
        with open(file, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - TAIL))
            return rows_of(stream.read().decode("utf-8", "replace"))
    except OSError:
        return []


def _seconds_per_step(rows: list[dict[str, Any]]) -> float:
    timed = [row for row in rows if "time" in row and row.get("step") is not None and "train/loss" in row]
    if len(timed) < 2 or timed[-1]["step"] <= timed[0]["step"]:
        return 0.0
    return (timed[-1]["time"] - timed[0]["time"]) / (timed[-1]["step"] - timed[0]["step"])


def _asked_steps(folder: Path) -> int:
    """trainer.max_steps of recipe.yaml, without the second that reading all of it as YAML takes for many runs."""
    try:
        text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    except OSError:
        return 0
    found = re.search(r"^trainer:\n(?:[ ].*\n)*?[ ]+max_steps: (\d+)$", text, re.MULTILINE)
    return int(found.group(1)) if found else 0


def _place(folder: Path) -> tuple[str, str]:
    """Recipe and stage by the names of the folders, where nothing else tells: the chain's list, or nothing."""
    if folder.name not in chain_stages(folder.parent):
        return folder.name, ""
    return str(read_json(folder.parent / CHAIN).get("recipe") or folder.parent.name), folder.name


def chain_stages(folder: Path) -> dict[str, int]:
    """The stages of a chain in order, with their steps (0: not known); {} where the folder holds no chain."""
    listed = read_json(folder / CHAIN).get("stages", [])
    return {str(one.get("stage")): int(one.get("steps") or 0) for one in listed if isinstance(one, dict)}


def chain_text(recipe: str, stages: dict[str, int]) -> str:
    """What chain.json holds."""
    listed = [{"stage": stage, "steps": steps} for stage, steps in stages.items()]
    return json.dumps({"recipe": recipe, "stages": listed}, indent=2) + "\n"


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None
