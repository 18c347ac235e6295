"""A folder that is there whole or not at all: built beside its place, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

DONE = "source.json"
"""The file by which such a folder is known to be one."""


def is_whole(folder: Path) -> bool:
    """Whether the folder was built to its end."""
    return (folder / DONE).is_file()


def build_whole(target: Path, build: Callable[[Path, Path], None]) -> None:
    """Builds a folder; whatever happens meanwhile, nothing half done is left at its place.

    Args:
        target: The folder's place.
        build: (scratch folder, output folder) -> None; writes `DONE` among its output.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        work, out = temporary / "work", temporary / "out"
        work.mkdir()
        out.mkdir()
        build(work, out)
        if target.exists():  # left by something else than us: it has no source.json
            shutil.rmtree(target)
        try:
            os.replace(out, target)
        except OSError:
            if not is_whole(target):  # else another process was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
