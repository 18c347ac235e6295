"""The source that a path stands for, by its name alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmframe import registry
from mmframe.data.files import is_url, locate
from mmframe.data.source import Source
from mmframe.errors import UserError


def guessed_source(path: str, what: str = "data") -> Source:
    """A source of the default arguments for a file, a pattern of files, or a folder.

    Args:
        path: As recipes write it; `demo:` and `offline:` are known.
        what: Who asks, for the message.

    Raises:
        UserError: no source reads files of such names.
    """
    registry.discover()
    name = f"{path}/" if not is_url(path) and Path(locate(path)).is_dir() else path
    sources: list[Any] = registry.classes("source")
    readers = [cls for cls in sources if name.endswith(tuple(cls.guessed_by))]
    if not readers:
        known = sorted({ending for cls in sources for ending in cls.guessed_by} - {"/"})
        raise UserError(f"{what}: {path} is no data known by its name; known: {', '.join(known)}, and folders")
    return readers[0](path)
