"""Compressed files: no place in them can be read by itself, so they are unpacked once, into the user's cache folder."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

from mmframe.data.files import base_name, blocks, open_stream, short_name, stamp
from mmframe.data.index import cached_folder, identity
from mmframe.errors import UserError
from mmframe.paths import cache_dir

_OPEN = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def is_packed(file: str) -> bool:
    return file.endswith((".tgz", *_OPEN))


def is_unpacked(file: str) -> bool:
    """Whether a file is a copy that `unpacked` has made."""
    return Path(file).is_relative_to(cache_dir() / "index")  # not all of it: the demo and offline data lie there, too


def unpacked(file: str) -> str:
    """A plain copy of a .gz, .tgz, .bz2 or .xz file, made once; any other file as it is.

    Raises:
        UserError: it is damaged or cut off, or there is no room for the copy.
    """
    if not is_packed(file):
        return file
    name = base_name(file)
    folder_name = short_name(file).partition("/")[0]  # it stays in the keys of records
    plain = name.removesuffix(".tgz") + ".tar" if name.endswith(".tgz") else name.rpartition(".")[0]

    def fill(folder: Path) -> None:
        size, free = stamp(file).size / 1e9, shutil.disk_usage(folder).free / 1e9
        print(f"data: unpacking {name}, {size:,.2f} GB, once, into {cache_dir()} ({free:,.0f} GB are free there)")
        (folder / folder_name).mkdir(exist_ok=True)
        with (folder / folder_name / plain).open("wb") as copy:
            for data in _content(file):
                copy.write(data)

    return str(cached_folder(identity([file]), "unpacked", fill) / folder_name / plain)


def _content(file: str) -> Iterator[bytes]:
    suffix = ".gz" if file.endswith(".tgz") else file[file.rindex(".") :]
    with open_stream(file) as packed:
        try:
            yield from blocks(_OPEN[suffix](packed))  # type: ignore[arg-type]
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise UserError(f"data: {file} is damaged or cut off ({error}); get it again") from error
