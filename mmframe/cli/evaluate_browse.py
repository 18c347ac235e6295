"""`mmframe evaluate browse`: a result as one HTML page, to be looked through."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmframe.cli.flags import parse_flags, whole
from mmframe.cli.run_dir import write_atomically

ABOUT = """Writes one HTML page of a result: each example with its pictures, prompt, answer, reference and score.

Filters for wrong, partly right, unmatched answers and categories, search, order; keys j and k. The page holds
everything it needs, pictures too, and loads nothing from a network."""


def main(words: list[str]) -> int:
    """Runs `mmframe evaluate browse ...`."""
    args = parse_flags("evaluate browse", words or ["--help"], _flags)
    if args is None:
        return 0
    from mmframe.evaluate.browse import browse_page

    page, notes = browse_page(args.result, args.limit, args.side, args.task, args.data)
    out = args.out or args.result / "browse.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page)
    for note in notes:
        print(f"evaluate browse: {note}")
    print(f"evaluate browse: {out} ({len(page.encode()) / 1e6:.1f} MB)")
    return 0


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.description = ABOUT
    parser.add_argument("result", type=Path, metavar="RESULT", help="folder RESULTS/MODEL/TASK")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: browse.html in RESULT)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the task's files, where its pictures are")
    parser.add_argument("--task", metavar="NAME", help="name or YAML file of the task (default: the record's)")
    parser.add_argument(
        "--limit", type=whole(0), default=1000, metavar="N", help="pictures in the page, of wrong answers first "
        "(default: %(default)s)"
    )  # fmt: skip
    parser.add_argument(
        "--side", type=whole(32), default=448, metavar="PX", help="longest side of a picture (default: %(default)s)"
    )
