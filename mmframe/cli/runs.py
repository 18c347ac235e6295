"""`mmframe runs [DIR]`: the runs in a folder and how they are. Without torch."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

from mmframe.cli.flags import parse_flags
from mmframe.cli.progress_line import age
from mmframe.cli.run_state import RunState, is_run, look
from mmframe.errors import UserError

ABOUT = """Lists the runs in a folder: state, steps, loss, and the time since the last sign of life.

  done               finished
  running, starting  its process lives; on another machine: it has written something lately
  stopped            by SIGTERM or Ctrl-C
  failed             by an error, which is shown
  dead               its process is gone, or silent, and it has not said why
  waiting            not begun

The command that began a run continues it when it is stopped, failed or dead."""
INSIDE = {"checkpoints", "generations"}


def main(words: list[str]) -> int:
    """Runs `mmframe runs`."""
    args = parse_flags("runs", words, _flags)
    if args is None:
        return 0
    root = args.dir
    if not root.is_dir():
        raise UserError(f"runs: {root} is no folder; runs are written to ./runs, or where --run-dir said")
    found = [look(folder) for folder in run_folders(root, args.all)]
    if args.json:
        print(json.dumps([run.as_json() for run in found], indent=2))
        return 0
    if not found:
        print(f"no runs in {root}")
        return 0
    for line in table(found):
        print(line)
    return 0


def run_folders(root: Path, old: bool = False) -> Iterator[Path]:
    """The run directories in a folder, itself perhaps among them, in the order of their first files."""
    found = []
    for place, names, _ in os.walk(root):
        names[:] = sorted(n for n in names if n not in INSIDE and n[0] != "." and (old or ".old-" not in n))
        if is_run(folder := Path(place)):
            found.append(folder)
    yield from sorted(found, key=_begun)


def _begun(folder: Path) -> tuple[str, float]:
    """Stages of one chain stand together, in the order in which they began."""
    file = next((f for f in (folder / "recipe.yaml", folder / "done.json") if f.is_file()), folder)
    return str(folder.parent), file.stat().st_mtime


def table(runs: list[RunState]) -> list[str]:
    """A line a run, under a head."""
    rows = [("state", "steps", "loss", "age", "recipe", "stage", "folder")]
    for run in runs:
        steps = f"{run.step}/{run.steps}" if run.steps else str(run.step)
        loss = "" if run.loss is None else f"{run.loss:.3f}"
        rows.append((run.state, steps, loss, age(run.seconds), run.recipe, run.stage, run.path))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for number, run in reversed(list(enumerate(runs, 1))):
        if run.why:
            lines.insert(number + 1, f"    {run.why}")
    return lines


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.description = ABOUT
    parser.add_argument("dir", type=Path, nargs="?", default=Path("runs"), metavar="DIR", help="default: runs")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--all", action="store_true", help="also what `fit --force` set aside (NAME.old-1, ...)")
