"""Readers of official layouts: files -> rows of plain columns. A task's `data` names one and its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mmframe.errors import UserError, suggest
from mmframe.tasks.readers.base import Files, Rows
from mmframe.tasks.readers.json_files import read_json, read_jsonl
from mmframe.tasks.readers.mme_folders import read_mme
from mmframe.tasks.readers.parquet import read_parquet
from mmframe.tasks.readers.shards import read_shards
from mmframe.tasks.readers.table import read_table
from mmframe.tasks.readers.toy import read_toy

READERS: dict[str, Callable[..., Rows]] = {
    "json": read_json,
    "jsonl": read_jsonl,
    "table": read_table,
    "parquet": read_parquet,
    "shards": read_shards,
    "mme": read_mme,
    "toy": read_toy,
}
"""By the key that a task's `data` has."""


def check_reader(name: str, arguments: Mapping[str, Any]) -> None:
    """Raises UserError for a reader or an argument that does not exist, or one that is missing."""
    if name not in READERS:
        raise UserError(f"no reader {name!r}; {suggest(name, READERS)}")
    known = dict(list(inspect.signature(READERS[name]).parameters.items())[1:])
    for key in arguments:
        if key not in known:
            raise UserError(f"reader {name} has no argument {key!r}; {suggest(key, known)}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise UserError(f"reader {name} needs {key!r}")


__all__ = ["READERS", "Files", "Rows", "check_reader"]
