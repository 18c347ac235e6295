"""`mmframe watch RUN`: a run or a chain of stages from another terminal, drawn anew in place. Without torch."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from mmframe.cli.flags import parse_flags, whole
from mmframe.cli.progress_line import age, bar, clock, short, sparkline
from mmframe.cli.run_state import RunState, chain_stages, is_run, look
from mmframe.errors import UserError
from mmframe.metrics_file import rows_of

ABOUT = """Shows a run or a chain as it goes: stages, loss, tokens/s, MFU, the share of the time that training waits for
data, the time to go, the age of the last checkpoint.

It only reads the run directory, so the run may be on another machine with the same disk. Ends when the run is done;
Ctrl-C ends the watching, not the run."""
RATE_ROWS = 10
"""Logged lines from which the speed of the steps is taken."""


class Follower:
    """The metrics of one run, read on from where the last look ended.

    Attributes:
        losses: As logged so far, over all attempts; where they overlap the later one counts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._start()

    def _start(self) -> None:
        self.losses: dict[int, float] = {}
        self.last: dict[str, Any] = {}
        self._timed: list[tuple[int, float]] = []
        self._attempt, self._offset, self._rest = 1, 0, b""

    def read(self) -> None:
        """Takes in what was written since."""
        file = self.folder / "metrics.jsonl"
        try:
            with open(file, "rb") as stream:
                if file.stat().st_size < self._offset:
                    self._start()  # another run in the same place
                stream.seek(self._offset)
                new = stream.read()
        except OSError:
            return
        self._offset += len(new)
        whole, _, self._rest = (self._rest + new).rpartition(b"\n")
        for row in rows_of(whole.decode("utf-8", "replace")):
            self._take(row)

    def _take(self, row: dict[str, Any]) -> None:
        step, attempt = int(row.get("step") or 0), row.get("attempt", 1)
        if attempt != self._attempt:
            self._attempt, self._timed = attempt, []
            self.losses = {at: loss for at, loss in self.losses.items() if at < step}
        self.last |= row
        if "train/loss" in row:
            self.losses[step] = float(row["train/loss"])
            self._timed = [*self._timed, (step, row["time"])][-RATE_ROWS:]

    @property
    def seconds_per_step(self) -> float:
        """Over the last logged lines; 0 while that is not known."""
        if len(self._timed) < 2 or self._timed[-1][0] <= self._timed[0][0]:
            return 0.0
        return (self._timed[-1][1] - self._timed[0][1]) / (self._timed[-1][0] - self._timed[0][0])


class View:
    """What is shown of a run directory.

    Raises:
        UserError: nothing has run there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        if is_run(root):
            self.steps: dict[Path, int] = {root: 0}
        else:
            self.steps = {root / stage: steps for stage, steps in chain_stages(root).items()}
            # a chain from before chain.json was written
            old = [child for child in sorted(root.glob("*")) if is_run(child) and ".old-" not in child.name]
            self.steps = self.steps or dict.fromkeys(sorted(old, key=lambda f: (f / "recipe.yaml").stat().st_mtime), 0)
        if not self.steps:
            raise UserError(f"watch: {root} holds no run; `mmframe runs` lists those in ./runs")
        self.followers = {folder: Follower(folder) for folder in self.steps}
        self.done = False

    def lines(self, now: float | None = None) -> list[str]:
        """The picture of this moment."""
        now = time.time() if now is None else now
        states = {folder: look(folder, now) for folder in self.steps}
        self.done = all(run.state == "done" for run in states.values())
        shown = [f"{next(iter(states.values())).recipe or self.root.name}  {self.root}"]
        names = {folder: run.stage or folder.name for folder, run in states.items()}
        width = max(len(name) for name in names.values())
        for folder, run in states.items():
            follower = self.followers[folder]
            follower.read()
            steps = run.steps or self.steps[folder]
            shown.append(f"  {names[folder]:<{width}}  {run.state:<8}  {_progress(run, steps)}{_loss(run, follower)}")
            if run.state in ("running", "starting"):
                shown.append("      " + "  ".join(_speed(run, steps, follower, now)))
            elif run.state in ("dead", "failed", "stopped"):
                told = f"{run.why}; " if run.why else ""
                shown.append(f"      {told}{age(run.seconds)} ago; the same command continues it")
        total = sum(run.steps or self.steps[folder] for folder, run in states.items())
        if len(states) > 1 and total:
            shown.append(f"  chain {bar(sum(run.step for run in states.values()), total)} steps")
        return shown


def _progress(run: RunState, steps: int) -> str:
    return bar(min(run.step, steps), steps, 12) if steps else f"step {run.step}"


def _loss(run: RunState, follower: Follower) -> str:
    if run.loss is None:
        return ""
    return f"  loss {run.loss:.3f} {sparkline([loss for _, loss in sorted(follower.losses.items())])}"


def _speed(run: RunState, steps: int, follower: Follower, now: float) -> list[str]:
    last, parts = follower.last, []
    if "train/tokens_per_s" in last:
        parts.append(f"{short(float(last['train/tokens_per_s']))} tok/s")
    if "train/image_token_share" in last:
        parts.append(f"{100 * float(last['train/image_token_share']):.0f}% image")
    for name in ("mfu", "hfu"):
        if f"train/{name}" in last:
            parts.append(f"{name.upper()} {100 * float(last[f'train/{name}']):.0f}%")
    if "train/data_wait_share" in last:
        parts.append(f"waits for data {100 * float(last['train/data_wait_share']):.0f}%")
    if steps > run.step and follower.seconds_per_step:
        parts.append(f"{clock((steps - run.step) * follower.seconds_per_step)} left")
    saved = _last_checkpoint(follower.folder)
    parts.append(f"checkpoint {age(now - saved)} ago" if saved else "no checkpoint yet")
    parts.append(f"seen {age(run.seconds)} ago")
    return parts


def _last_checkpoint(folder: Path) -> float:
    """When the newest checkpoint was written, Unix time; 0 when there is none."""
    files = [path for path in (folder / "checkpoints").glob("*") if path.name[0] != "."]
    return max((path.stat().st_mtime for path in files), default=0.0)


def main(words: list[str]) -> int:
    """Runs `mmframe watch`."""
    args = parse_flags("watch", words or ["--help"], _flags)
    if args is None:
        return 0
    view = View(args.run)
    terminal = sys.stdout.isatty()
    drawn = 0
    try:
        while True:
            columns = shutil.get_terminal_size().columns - 1 if terminal else 1000
            lines = [line[:columns] for line in view.lines()]
            back = f"\033[{drawn}F\033[J" if drawn else ""
            sys.stdout.write(back + "\n".join(lines) + "\n")
            sys.stdout.flush()
            if args.once or not terminal or view.done:
                return 0
            drawn = len(lines)
            time.sleep(args.every)
    except KeyboardInterrupt:
        return 0


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.description = ABOUT
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory of a recipe, or of one stage")
    parser.add_argument("--once", action="store_true", help="print once (so does an output that is no terminal)")
    parser.add_argument(
        "--every", type=whole(1), default=2, metavar="SECONDS", help="between two looks (default: %(default)s)"
    )
