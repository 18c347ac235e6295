"""A sweep: every run of a grid that is not finished, through the queue; then the tables. No torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mmframe.ablate.collect import COLUMNS, CURVE_COLUMNS, CURVES, RESULTS, collect, write_csv, write_index
from mmframe.ablate.fairness import check_fair
from mmframe.ablate.grid import Grid
from mmframe.ablate.plan import Run
from mmframe.ablate.queue import Queue, Task
from mmframe.ablate.report import write_report
from mmframe.ablate.run_folder import RunFolder
from mmframe.ablate.slots import slots
from mmframe.ablate.view import SweepView
from mmframe.cli.run_dir import write_atomically


def wants_gpu(runs: Sequence[Run]) -> bool:
    """Whether any run may take a GPU."""
    stages = (config for run in runs for config in run.configs.values())
    return any((config.get("trainer") or {}).get("accelerator", "auto") != "cpu" for config in stages)


def sweep(
    grid: Grid,
    runs: Sequence[Run],
    results: Path,
    command: Sequence[str],
    jobs: int | None = None,
    timeout: float | None = None,
) -> int:
    """Runs what is not finished, and writes tables and report.

    Args:
        grid: Whose runs they are.
        runs: All of them.
        results: Folder of all results.
        command: Words that do one run when `--run HASH` is added.
        jobs: Runs at once; None: one for each GPU, or one.
        timeout: Seconds of one attempt.

    Returns:
        0; 1 when a run has failed; 130 or 143 when a signal stopped the sweep.

    Raises:
        UserError: finished runs that must not be compared.
    """
    places = slots(jobs, wants_gpu(runs))
    folders = {run.hash: RunFolder(results, run) for run in runs}
    open_runs = [run for run in runs if not folders[run.hash].finished(grid.evaluators)]
    check_fair(results, runs, grid.evaluators)
    write_index(results, grid, runs)
    print(
        f"ablate {grid.name}: {len(runs)} runs, {len(runs) - len(open_runs)} of them finished; {len(places)} at once; "
        f"results in {results / grid.name}",
        file=sys.stderr,
    )
    tasks = [Task(run.hash, [*command, "--run", run.hash], folders[run.hash].log) for run in open_runs]
    view = SweepView(folders, len(runs) - len(open_runs))

    def changed(task: Task) -> None:
        view.changed(task)
        if task.state == "failed":
            failure = {"attempts": task.attempts, "reason": task.reason}
            write_atomically(folders[task.name].failure, json.dumps(failure, indent=1) + "\n")

    queue = Queue(tasks, places, timeout, on_change=changed, on_tick=lambda: view.tick(tasks))
    queue.run()
    if queue.stopped_by:
        print("ablate: stopped; the same command goes on from here", file=sys.stderr)
        return 128 + queue.stopped_by
    write_results(grid, runs, results)
    return 1 if any(task.state == "failed" for task in tasks) else 0


def write_results(grid: Grid, runs: Sequence[Run], results: Path) -> None:
    """Writes both tables and the report, and prints the report.

    Raises:
        UserError: runs that must not be compared.
    """
    check_fair(results, runs, grid.evaluators)
    folder = results / grid.name
    rows, curves = collect(grid, runs, results)
    write_csv(folder / RESULTS, COLUMNS, rows)
    write_csv(folder / CURVES, CURVE_COLUMNS, curves)
    written = write_report(folder)
    print((folder / "report.md").read_text(encoding="utf-8"))
    print(f"written: {', '.join(map(str, [folder / RESULTS, folder / CURVES, *written]))}", file=sys.stderr)
