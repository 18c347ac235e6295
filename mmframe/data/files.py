"""Files of data sets: paths and URLs, patterns that stand for many, sizes, reading. No torch here."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from mmframe.errors import UserError
from mmframe.paths import data_path, offline_dir

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_CHANGED = ("mtime", "LastModified", "last_modified", "Last-Modified", "ETag", "etag", "updated", "created")
"""Where the file systems of fsspec say when a file was last written, or which version it is."""

_SMALL = 64 << 20  # bytes; of larger files a digest takes the ends
_END = 1 << 20

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Endings of picture files, in small letters."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Stamp:
    """What a file looks like from outside.

    Attributes:
        size: bytes.
        changed: when it was last written, or its version: different if its content is.
    """

    size: int
    changed: str


def is_url(file: str) -> bool:
    return "://" in file


def locate(path: str) -> str:
    """A path of a recipe (`~`, $VARIABLES, `demo:`, `offline:`, URL): absolute, or a URL that fsspec knows."""
    path = path.removeprefix("file://")
    return path if is_url(path) else os.path.abspath(data_path(path))


def base_name(file: str) -> str:
    """The last part of a path or URL."""
    return file.rpartition("/")[2]


def short_name(file: str) -> str:
    """Folder and name without its suffix, for the keys of records: `train/part-0` of `/data/train/part-0.jsonl`."""
    folder, _, name = file.rpartition("/")  # no pathlib: this is done for every record
    return f"{folder.rpartition('/')[2]}/{os.path.splitext(name)[0]}"


def expand(named: str | Sequence[str], suffixes: Sequence[str] = ()) -> list[str]:
    """The files that a path, a URL, a pattern or a list of them stand for, as `locate` gives them.

    Patterns: `{00000..00099}` and `{a,b}` (every file must be there), `*`, `?` and `[...]` (those that are there,
    sorted). A local folder stands for all files in it, at any depth, that end in one of `suffixes`.

    Raises:
        UserError: a file is missing, or a pattern or folder has none; one line.
    """
    patterns = [named] if isinstance(named, str) else list(named)
    found: list[str] = []
    for pattern in patterns:
        files = [file for each in _braces(pattern) for file in _matches(each, suffixes)]
        missing = [file for file in files if not is_url(file) and not os.path.isfile(file)]
        if missing:
            hint = how_to_get(pattern)
            more = f" ({len(missing):,} of the {len(files):,} files of {pattern} are missing)" if len(files) > 1 else ""
            raise UserError(f"data: {missing[0]} does not exist{more}{hint}")
        found += files
    if not found:
        raise UserError("data: no file is named; give a path, a URL, a pattern like part-{000..099}.tar, or a list")
    return found


def how_to_get(path: str) -> str:
    """What to add to the message that a path of the demo or offline data is missing; empty for other paths."""
    if path.startswith("demo:"):
        return "; run: python -m mmframe.data.demo"
    if path.startswith("offline:"):
        return f"; run: mmframe data offline {offline_dir()}"
    return ""


def _braces(pattern: str) -> list[str]:
    match = _BRACES.search(pattern)
    if not match:
        return [pattern]
    first, last, words = match.groups()
    if words is None:
        choices: Iterable[str] = (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
    else:
        choices = words.split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    found = [each for choice in choices for each in _braces(head + choice + tail)]
    if not found:
        raise UserError(f"data: {pattern} stands for no file: {first} is above {last}")
    return found


def _matches(pattern: str, suffixes: Sequence[str]) -> list[str]:
    place = locate(pattern)
    if is_url(place):  # what follows a ? is for the server
        files = _remote_glob(place) if re.search(r"[*\[]", place.partition("?")[0]) else [place]
    elif os.path.isdir(place):
        if not suffixes:
            raise UserError(f"data: {place} is a folder, a file is needed")
        inside = (os.path.join(folder, name) for folder, _, names in os.walk(place) for name in names)
        files = sorted(file for file in inside if file.lower().endswith(tuple(suffixes)))
        if not files:
            raise UserError(f"data: no file in {place} ends in {' or '.join(suffixes)}")
    elif os.path.exists(place) or not re.search(r"[*?\[]", place):
        files = [place]
    else:
        files = sorted(file for file in glob.glob(place, recursive=True) if os.path.isfile(file))
    if not files:
        raise UserError(f"data: no file matches {pattern}{how_to_get(pattern)}")
    return files


def _remote_glob(url: str) -> list[str]:
    import fsspec

    with reading(url):
        filesystem, path = fsspec.core.url_to_fs(url)
        return sorted(filesystem.unstrip_protocol(found) for found in filesystem.glob(path))


@contextmanager
def reading(file: str) -> Iterator[None]:
    """What goes wrong with a file in here becomes a UserError of one line that names it."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"data: {file} does not exist") from error
    except ImportError as error:
        raise UserError(f"data: {file} needs a package that is not installed: {error}") from error
    except Exception as error:  # the file systems of fsspec raise whatever their clients raise
        if not isinstance(error, OSError) and not is_url(file):
            raise
        raise UserError(f"data: cannot read {file}: {error or type(error).__name__}") from error


def stamp(file: str) -> Stamp:
    """Size and time or version of a file.

    Raises:
        UserError: it is missing or cannot be reached, or the server does not say how large it is.
    """
    with reading(file):
        if not is_url(file):
            known = os.stat(file)
            return Stamp(known.st_size, str(known.st_mtime_ns))
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(file)
        info = filesystem.info(path)
        if info.get("size") is None:
            raise UserError(f"data: {file}: the server does not say how large it is; download it first")
        return Stamp(int(info["size"]), next((str(info[key]) for key in _CHANGED if info.get(key)), ""))


def content_digest(files: Iterable[str | Path]) -> str:
    """Short hash of files: names, sizes and content, of large ones of their first and last megabyte. A file of which
    there are two copies has one name and one digest; of a URL the size is taken and the content is not."""
    whole = hashlib.sha256()
    for file in sorted({str(file) for file in files}, key=lambda file: Path(file).parts):
        size = stamp(file).size
        whole.update(f"{base_name(file)}\t{size}\n".encode())
        if is_url(file):
            continue
        with open_stream(file) as stream:
            if size <= _SMALL:
                whole.update(stream.read())
            else:
                whole.update(stream.read(_END))
                stream.seek(-_END, os.SEEK_END)
                whole.update(stream.read())
    return whole.hexdigest()[:16]


def stamps(files: Sequence[str]) -> list[Stamp]:
    """`stamp` of each file, several at once where they are far away."""
    return in_threads(stamp, files, 32 if any(map(is_url, files)) else 1)


def in_threads(what: Callable[[str], Result], files: Sequence[str], threads: int) -> list[Result]:
    """`what` of each file, in order; the first error stops what has not begun."""
    if threads < 2 or len(files) < 2:
        return [what(file) for file in files]
    pool = ThreadPoolExecutor(threads)
    try:
        return list(pool.map(what, files))
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def open_stream(file: str) -> Iterator[BinaryIO]:
    """A file for reading bytes, seekable; errors as in `reading`."""
    with reading(file):
        if not is_url(file):
            with open(file, "rb") as stream:
                yield stream
        else:
            import fsspec

            with fsspec.open(file, "rb") as stream:
                yield stream  # type: ignore[misc]


def blocks(stream: BinaryIO, size: int | None = None, block: int = 1 << 22) -> Iterator[bytes]:
    """What comes next in a stream, `size` bytes or all, block by block."""
    left = sys.maxsize if size is None else size
    while left and (data := stream.read(min(block, left))):
        yield data
        left -= len(data)
