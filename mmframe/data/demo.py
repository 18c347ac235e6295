"""Fetches the demo data: `python -m mmframe.data.demo [--out DIR] [--only NAME ...]`. Also reads what it made.

Everything goes into the user's cache folder, nothing into the repository; a second run fetches nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from mmframe.data.demo_sources import SOURCES, Source
from mmframe.data.fetch import Unavailable
from mmframe.data.whole_folder import DONE, build_whole, is_whole
from mmframe.errors import UserError, suggest
from mmframe.paths import demo_dir

YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Question:
    """One question of a demo split.

    Attributes:
        key: record id.
        image: path of the picture.
        question, answer: texts.
        open: whether the answer is something else than yes or no.
    """

    key: str
    image: Path
    question: str
    answer: str

    @property
    def open(self) -> bool:
        return self.answer not in YES_NO


def load_questions(source: str = "easy_vqa", split: str = "test", out: Path | None = None) -> list[Question]:
    """All questions of a split of the demo data, image by image.

    Raises:
        UserError: the data is not there; the message holds the command that fetches it.
    """
    file = (out or demo_dir()) / source / f"{split}.jsonl"
    return [
        Question(f"{row['id']}-{n}", file.parent / row["image"], question, answer)
        for row in _rows(file)
        for n, (question, answer) in enumerate(row["questions"])
    ]


def load_text(out: Path | None = None) -> list[str]:
    """English paragraphs for checks of the language model (text NLL), always the same and in the same order.

    Raises:
        UserError: the data is not there; the message holds the command that fetches it.
    """
    return [row["text"] for row in _rows((out or demo_dir()) / "text" / "text.jsonl")]


def fetch(out: Path, names: list[str] | None = None, say=print) -> tuple[list[str], list[str]]:
    """Fetches the sources that are not there yet.

    Returns:
        (names that are there now, names that could not be had); each is reported through `say`.
    """
    have, missing = [], []
    for source in SOURCES:
        if names and source.name not in names:
            continue
        target = out / source.name
        try:
            note = "cached" if is_whole(target) else _build(source, target)
        except Unavailable as error:
            missing.append(source.name)
            say(f"demo data: {source.name} NOT available: {error}")
            continue
        have.append(source.name)
        counts = json.loads((target / DONE).read_text(encoding="utf-8"))["records"]
        sizes = ", ".join(f"{name} {count}" for name, count in counts.items())
        say(f"demo data: {source.name} {note}: {source.about}: {sizes}")
    return have, missing


def _build(source: Source, target: Path) -> str:
    def build(work: Path, out: Path) -> None:
        records = source.build(work, out)
        facts = {"name": source.name, "about": source.about, "records": records}
        (out / DONE).write_text(json.dumps(facts, indent=1), encoding="utf-8")

    build_whole(target, build)
    return "fetched"


def _rows(file: Path) -> list[dict]:
    if not file.is_file():
        raise UserError(f"demo data: {file} does not exist; run: python -m mmframe.data.demo")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code: 2 if no picture source could be had."""
    parser = argparse.ArgumentParser(prog="python -m mmframe.data.demo", description="Fetches the demo data.")
    parser.add_argument("--out", type=Path, default=demo_dir(), help="folder (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these sources")
    options = parser.parse_args(arguments)
    known = [source.name for source in SOURCES]
    for name in options.only or []:
        if name not in known:
            print(f"error: no demo source is called {name!r}; {suggest(name, known)}", file=sys.stderr)
            return 2
    have, missing = fetch(options.out.expanduser(), options.only)
    if not have or have == ["text"] and missing:
        print(f"error: none of the picture sources of the demo can be reached ({', '.join(missing)})", file=sys.stderr)
        return 2
    print(f"demo data: {options.out}" + (f"; not available: {', '.join(missing)}" if missing else ""))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
