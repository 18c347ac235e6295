"""`python -m experiments.modular_vs_monolithic [--preset quick|night|h100]`: trains both, measures both, one report.

The runs are shared with `python -m experiments.claims --preset ...`; a second call goes on where the first was stopped.
Writes experiments/results/modular_vs_monolithic_PRESET.md, .json, .csv and .png; `--results DIR` keeps those that are
there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from experiments.claims.sweep import REPOSITORY, drop_weights, results, run_grid
from experiments.modular_vs_monolithic.report import as_json, draw, markdown
from mmframe.ablate.collect import COLUMNS, read_csv, write_csv
from mmframe.cli.run_dir import write_atomically
from mmframe.errors import UserError

GRID = Path(__file__).parent / "pair.yaml"
RESULTS = REPOSITORY / "experiments" / "results"


def parse(words: list[str] | None = None) -> argparse.Namespace:
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m experiments.modular_vs_monolithic", description=__doc__, formatter_class=about
    )
    parser.add_argument("--preset", choices=("quick", "night", "h100"), default="night")
    parser.add_argument("--jobs", type=int, help="runs at once (default: 2 on CPUs, 8 in h100)")
    parser.add_argument("--rounds", type=int, default=9, help="of every timing at inference")
    parser.add_argument("--keep", action="store_true", help="keep the weights of finished runs, a gigabyte each")
    parser.add_argument("--report-only", action="store_true", help="write the report from what was measured before")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the report goes")
    return parser.parse_args(words)


def write(preset: str, speed: dict[str, Any], folder: Path) -> list[Path]:
    """The report from the CSV and the timings."""
    name = f"modular_vs_monolithic_{preset}"
    rows = read_csv(folder / f"{name}.csv", COLUMNS)
    write_atomically(folder / f"{name}.md", markdown(preset, rows, speed))
    write_atomically(folder / f"{name}.json", as_json(preset, rows, speed))
    draw(folder / f"{name}.png", rows)
    return [folder / f"{name}.{suffix}" for suffix in ("md", "json", "png")]


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    folder = args.results.absolute()
    os.chdir(REPOSITORY)
    code = 0
    try:
        if args.report_only:
            file = folder / f"modular_vs_monolithic_{args.preset}.json"
            speed = json.loads(file.read_text(encoding="utf-8"))["inference"] if file.is_file() else {}
        else:
            code = run_grid(GRID, args.preset, args.jobs)
            rows = results(GRID, args.preset)
            write_csv(folder / f"modular_vs_monolithic_{args.preset}.csv", COLUMNS, [dict(row) for row in rows])
            if not args.keep:
                drop_weights(rows, args.preset)
            from experiments.bench.timing import device_name
            from experiments.modular_vs_monolithic.speed import measure
            from mmframe.cli.malloc import keep_freed_memory

            keep_freed_memory()  # as the commands do
            speed = {"device": device_name(), "when": time.strftime("%Y-%m-%d"), **measure(args.rounds)}
        for file in write(args.preset, speed, folder):
            print(file)
        return code
    except UserError as error:
        print(f"modular_vs_monolithic: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
