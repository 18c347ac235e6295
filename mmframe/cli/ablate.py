"""`mmframe ablate GRID`: change one thing, keep everything else equal, see what came of it. Torch only in the runs."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmframe.cli.flags import parse_flags, whole
from mmframe.errors import UserError, suggest

ABOUT = """usage: mmframe ablate GRID.yaml [options]
       mmframe ablate report FOLDER_OR_CSV      table and plots anew, from the CSVs alone

Trains every variant of a grid under every seed and the same budget, each run in a process of its own, measures the
final weights, and writes a table with paired differences to the baseline, and plots. The same command goes on with a
sweep that was stopped or killed: what is finished is not repeated, what was cut off goes on from its checkpoint."""
EPILOG = """a grid (experiments/ablations/experts.yaml is one to copy):
  extends: _common.yaml           another grid, whose keys these are laid over
  base: demo/evip_pp              a recipe, or a list of them
  mode: one_at_a_time             the baseline, and each other variant alone; or product; or list, with one axis
  seeds: [0, 1, 2]
  budget: {samples: 3200}         or tokens; `shares: {STAGE: NUMBER}`, else the stages share it as their max_steps
  overrides: {...}                of every run; like a variant it wins in every stage of the recipe
  axes: {AXIS: {BASELINE: {}, VARIANT: {model: ..., stages: {STAGE: {...}, LEFT_OUT: null}, base: OTHER_RECIPE}}}
  evaluators: {NAME: {class_path: ..., init_args: ...}}
  metrics: [val/loss, NAME.KEY]   the first is the headline; lower_is_better: [...] (losses are known)
  presets: {PRESET: {...}}        keys that --preset lays over the grid

in the folder of results:
  GRID/results.csv curves.csv report.md curves.png deltas.png
  runs/HASH/      a run, named by its resolved recipe: several grids in one folder share what they have in common
  index.json      which run is what in which grid"""
DEFAULT_OUT = Path("runs") / "ablate"


def main(words: list[str]) -> int:
    """Runs `mmframe ablate ...`."""
    if words[:1] == ["report"]:
        return report(words[1:])
    args = parse_flags("ablate", words or ["--help"], _flags)
    if args is None:
        return 0
    if args.parent is not None:
        from mmframe.cli.chain import end_with

        end_with(args.parent)
    from mmframe.ablate.grid import read_grid
    from mmframe.ablate.plan import plan
    from mmframe.ablate.survey import Survey

    grid = read_grid(args.grid, args.preset)
    runs = plan(grid, Survey(args.out / "survey").ask)
    if args.run is not None:
        return _one(grid, runs, args)
    command = [sys.executable, "-m", "mmframe", "ablate", str(args.grid), f"--out={args.out}"]
    command += [f"--preset={args.preset}"] if args.preset else []
    command += ["--keep"] if args.keep else []
    if args.dry_run:
        return _dry_run(grid, runs, args.out)
    from mmframe.ablate.sweep import sweep, wants_gpu

    if args.slurm is not None:
        from mmframe.ablate.slurm import write_array

        listed = write_array(args.slurm, grid.name, runs, command, wants_gpu(runs), args.out)
        print(f"{args.slurm}: {len(runs)} runs, listed in {listed}; now `sbatch {args.slurm}`")
        return 0
    import os

    return sweep(grid, runs, args.out, [*command, f"--parent={os.getpid()}"], args.jobs, args.timeout)


def report(words: Sequence[str]) -> int:
    """Writes the report anew."""
    if not words or words[0] in ("--help", "-h"):
        print("usage: mmframe ablate report FOLDER_OR_CSV\n\nWrites report.md and the plots, from the CSVs alone.")
        return 0
    if len(words) > 1:
        raise UserError(f"ablate report: takes one folder or CSV, not also {words[1]!r}")
    from mmframe.ablate.report import write_report

    print("\n".join(map(str, write_report(Path(words[0])))))
    return 0


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = ABOUT, EPILOG
    parser.usage = argparse.SUPPRESS
    parser.add_argument(
        "grid", type=Path, metavar="GRID", help="YAML: base, axes, seeds, budget, evaluators, metrics, presets"
    )
    parser.add_argument("--preset", metavar="NAME", help="lays a preset of the grid over it")
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help=f"folder of results (default: {DEFAULT_OUT})"
    )
    parser.add_argument("--jobs", type=whole(1), metavar="N", help="runs at once (default: one for each GPU, else one)")
    parser.add_argument(
        "--timeout", type=_seconds, metavar="T", help="of one attempt: 90, 30m, 2h; a run has two attempts"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would run, and stop")
    parser.add_argument("--resume", action="store_true", help="go on with an earlier sweep; it always does")
    parser.add_argument(
        "--keep", action="store_true", help="keep checkpoints and the weights of every stage, not only the last"
    )
    parser.add_argument(
        "--slurm", type=Path, metavar="FILE", help="write a job array and the list of its runs, and stop"
    )
    parser.add_argument("--run", metavar="ID", help="do this run alone, in this process: a hash or a name of --dry-run")
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 90, 30m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _one(grid: Any, runs: Sequence[Any], args: argparse.Namespace) -> int:
    """One run in this process."""
    from mmframe.ablate.queue import BUSY
    from mmframe.cli.run_dir import Busy

    found = [run for run in runs if args.run in (run.hash, run.id)]
    if not found:
        raise UserError(
            f"{grid.file}: no run is called {args.run!r} (was the grid changed?); "
            f"{suggest(args.run, [run.id for run in runs])}"
        )
    from mmframe.ablate.worker import work

    try:
        return work(grid, found[0], args.out, args.keep)
    except Busy as error:
        print(f"mmframe: {error}", file=sys.stderr)
        return BUSY


def _dry_run(grid: Any, runs: Sequence[Any], out: Path) -> int:
    """Says what would run."""
    from mmframe.ablate.plan import differences
    from mmframe.ablate.run_folder import RunFolder

    print(f"ablate {grid.name}: {len(runs)} runs, results in {out / grid.name}")
    first = {run.seed: run for run in runs if run.variant.baseline}
    for run in runs:
        folder = RunFolder(out, run)
        state = "finished" if folder.finished(grid.evaluators) else "trained" if folder.trained() else "would run"
        steps = "+".join(str(count) if count else "?" for count in run.steps.values())
        counts = ", ".join(f"{count:,} {name}" for name, count in run.parameters.items())
        print(f"{run.id:<24} {run.hash}  {state}; {steps} steps; parameters {counts}")
        if run.variant.baseline or run.seed != grid.seeds[0]:
            continue
        for line in _told(differences(run, first[run.seed]), list(run.configs)):
            print(f"    {line}")
    return 0


def _told(found: dict[str, tuple[Any, Any]], stages: list[str]) -> list[str]:
    """Differences as lines; what is the same in all stages is said once."""
    lines: dict[str, list[str]] = {}
    for key, (new, old) in found.items():
        stage = next((name for name in stages if key.startswith(f"{name}.")), "")
        lines.setdefault(f"{key.removeprefix(f'{stage}.')}: {old} -> {new}", []).append(stage)
    return [line if len(at) == len(stages) else f"{', '.join(at)}: {line}" for line, at in lines.items()]
