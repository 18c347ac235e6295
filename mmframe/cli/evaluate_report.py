"""`mmframe evaluate report`: results as the paper's tables, beside the published rows. Without torch."""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

from mmframe.cli.flags import parse_flags
from mmframe.cli.run_dir import write_atomically
from mmframe.errors import UserError

ABOUT = """Makes the paper's tables of results, ours beside the published ones, and a radar plot.

A task stands in the column of its name, marked where split, matcher or judge are not those of the published figures.
Results on a part of the data (--limit) are left out unless asked for. A row has an average when it is complete."""
EPILOG = """writes into --out:
  report.md    what is printed            report.csv   one figure a row, with the conditions of ours
  report.json  the same for programs      radar.png    ours against --rows

--diff compares two models, or two results of a task, on the examples that both answered, over the same data."""
ROWS = ("Mono-InternVL-2B", "InternVL-1.5-2B", "Emu3", "EVE-7B (HD)")


def main(words: list[str]) -> int:
    """Runs `mmframe evaluate report ...`."""
    args = parse_flags("evaluate report", words or ["--help"], _flags)
    if args is None:
        return 0
    if args.diff:
        from mmframe.evaluate.compare import compared

        if args.results:
            raise UserError(f"evaluate report: --diff takes its two folders, not also {args.results[0]}")
        print(compared(*args.diff), end="")
        return 0
    if not args.results:
        raise UserError("evaluate report: which results? give folders that `mmframe evaluate` wrote")
    from mmframe.evaluate.collect import find_results, model_rows
    from mmframe.evaluate.published import chosen
    from mmframe.evaluate.report import COLUMNS, as_json, csv_rows, markdown
    from mmframe.evaluate.tables import FEWEST_AXES, build_report

    published = chosen(name.strip() for name in args.rows.split(",") if name.strip())
    found, unfinished = find_results(args.results)
    report = build_report(model_rows(found), args.limited)
    report.left_out += [
        f"{folder}: answers without a result: not finished, or a split without public answers" for folder in unfinished
    ]
    out = args.out or args.results[0] / "report"
    out.mkdir(parents=True, exist_ok=True)
    text, stream = markdown(report), io.StringIO()
    table = csv.DictWriter(stream, COLUMNS, lineterminator="\n", restval="")
    table.writeheader()
    table.writerows(csv_rows(report))
    written = {"report.md": text, "report.csv": stream.getvalue(), "report.json": as_json(report)}
    for name, content in written.items():
        write_atomically(out / name, content)
    print(text)
    if len(report.radar_axes()) >= FEWEST_AXES:
        from mmframe.evaluate.radar import draw_radar  # matplotlib is slow to load

        draw_radar(out / "radar.png", report, published)
        written["radar.png"] = ""
    else:
        (out / "radar.png").unlink(missing_ok=True)  # an earlier report's
        print(f"no radar.png: it takes {FEWEST_AXES} benchmarks of the paper's two tables")
    print("\n".join(str(out / name) for name in written))
    return 0


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = ABOUT, EPILOG
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULTS", help="folders of results, at any depth")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: report in the first RESULTS)")
    parser.add_argument(
        "--rows", default=",".join(ROWS), metavar="A,B", help="published models in the plot (default: %(default)s)"
    )
    parser.add_argument("--limited", action="store_true", help="results on a part of the data stand in tables, marked")
    parser.add_argument("--diff", nargs=2, type=Path, metavar=("A", "B"), help="differences from A to B with intervals")
