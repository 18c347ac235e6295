"""`python -m experiments.claims [--preset fast|night|h100] [--only NAME ...]`: runs the grids and writes the report.

fast    the first three claims at equal data, 40 steps a run: about half an hour on two cores
night   all claims, 160 steps a run (40 to 320 in `scaling`), bf16 products: three to four hours on two cores with bf16
        instructions; on others nine to ten, with `precision: 32-true` in the grids' presets
h100    all claims, 600 steps of four times the pictures, five seeds: see h100.sh

A second call goes on where the first was stopped. The data is fetched beforehand: `python -m mmframe.data.demo`, and
`mmframe data offline DIR` with MMFRAME_OFFLINE_DATA=DIR. The report is written to experiments/results/claims_PRESET.*;
`--results DIR` keeps those that are there.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from experiments.claims.claims import CLAIMS, Claim
from experiments.claims.report import RESULTS, read_results, write_report, write_results
from experiments.claims.sweep import REPOSITORY, drop_weights, results, run_grid, warm_starts
from mmframe.ablate.grid import preset_names, read_grid
from mmframe.errors import UserError, suggest
from mmframe.paths import data_path

PRESETS = ("fast", "night", "h100")
NEEDED = {
    "demo:easy_vqa/val.jsonl": "python -m mmframe.data.demo",
    "demo:text/text.jsonl": "python -m mmframe.data.demo",
    "offline:wordnet/train.jsonl": "mmframe data offline DIR, and export MMFRAME_OFFLINE_DATA=DIR",
}


def parse(words: list[str] | None = None) -> argparse.Namespace:
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m experiments.claims", description=__doc__, formatter_class=about)
    parser.add_argument("--preset", choices=PRESETS, default="fast")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help=", ".join(c.name for c in CLAIMS))
    parser.add_argument("--jobs", type=int, help="runs at once (default: 2 on CPUs, 8 in h100)")
    parser.add_argument("--keep", action="store_true", help="keep the weights of finished runs, a gigabyte each")
    parser.add_argument("--dry-run", action="store_true", help="check every grid and say what would run")
    parser.add_argument("--report-only", action="store_true", help="write the report from claims_PRESET.csv")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the report goes")
    return parser.parse_args(words)


def chosen(only: list[str]) -> list[Claim]:
    """The claims named, or all.

    Raises:
        UserError: a name is not known.
    """
    known = {claim.name: claim for claim in CLAIMS}
    for name in only:
        if name not in known:
            raise UserError(f"claims: no claim is called {name!r}; {suggest(name, known)}")
    return [claim for claim in CLAIMS if not only or claim.name in only]


def train(args: argparse.Namespace, claims: list[Claim]) -> int:
    """Runs the grids of the claims; the worst exit code."""
    for path, command in NEEDED.items():
        if not data_path(path).is_file():
            raise UserError(f"claims: {data_path(path)} ({path}) is not there; run: {command}")
    seeds = sorted({seed for claim in claims for seed in read_grid(claim.file, args.preset).seeds})
    if not args.dry_run and (code := warm_starts(seeds, args.preset == "h100")):
        return code
    worst = 0
    for claim in claims:
        worst = max(worst, run_grid(claim.file, args.preset, args.jobs, args.dry_run))
        if not args.dry_run and not args.keep:
            drop_weights(results(claim.file, args.preset), args.preset)
    return worst


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    folder = args.results.absolute()
    os.chdir(REPOSITORY)  # the recipes name their start from here
    try:
        claims = [claim for claim in chosen(args.only) if args.preset in preset_names(claim.file)]
        code = 0 if args.report_only else train(args, claims)
        if args.dry_run:
            return code
        if not args.report_only:
            write_results(args.preset, {claim.name: results(claim.file, args.preset) for claim in claims}, folder)
        for file in write_report(args.preset, read_results(folder / f"claims_{args.preset}.csv"), folder):
            print(file)
        return code
    except UserError as error:
        print(f"claims: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
