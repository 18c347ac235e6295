"""Indexes of large files, made once and kept in the user's cache folder as memory-mapped arrays.

Layout: `cache_dir()/index/<digest>/arrays/<name>.npy`, where the digest is of what was indexed (kind, VERSION, path,
size and time of the file), so a file that has changed is another entry. An entry is built in a folder of its own and
renamed, by one process at a time; a kill leaves nothing that counts, and an entry that was damaged is built anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np

from mmframe.data.files import stamps
from mmframe.errors import UserError
from mmframe.paths import cache_dir

VERSION = 1
Arrays: TypeAlias = dict[str, np.ndarray]
Built: TypeAlias = Arrays | Iterator[Arrays]
"""Arrays as a whole, or in pieces that follow one another: then no more than a piece is in memory."""

_CONTENTS = "contents.json"


class Index(dict[str, np.ndarray]):
    """The arrays of an index, read-only and memory-mapped; pickled as the name of their folder.

    Args:
        folder: holds <name>.npy.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__((file.name.removesuffix(".npy"), _mapped(file)) for file in sorted(folder.glob("*.npy")))
        self.folder = folder

    def __reduce__(self) -> tuple:
        return Index, (self.folder,)


def _mapped(file: Path) -> np.ndarray:
    # a plain array over the map: numpy's own class for maps is slow where single numbers are read
    return np.load(file, mmap_mode="r").view(np.ndarray)


def cached_index(file: str | Sequence[str], kind: str, build: Callable[[], Built]) -> Index:
    """The index of a file (or of several together), from the cache folder or made and kept there.

    Args:
        file: path or URL, as `mmframe.data.files.locate` gives it.
        kind: what kind of index; another kind of the same file is another entry.
        build: makes the arrays (one dimension each).

    Raises:
        UserError: the file is missing, or the cache folder cannot be written.
    """
    return index_of(identity([file] if isinstance(file, str) else file), kind, build)


def identity(files: Sequence[str]) -> str:
    """What says whether files are still what they were: path or URL, size, time or version of each."""
    each = zip(files, stamps(files), strict=True)
    return "\n".join(f"{name}\t{known.size}\t{known.changed}" for name, known in each)


def index_of(content: str, kind: str, build: Callable[[], Built]) -> Index:
    """As `cached_index`, of anything that `content` identifies."""
    return Index(cached_folder(content, kind, lambda folder: _write(folder, build())))


def cached_folder(content: str, kind: str, fill: Callable[[Path], None]) -> Path:
    """A folder of files made from something that `content` identifies: from the cache, or filled now and kept.

    Raises:
        UserError: the cache folder cannot be written.
    """
    digest = hashlib.sha256(f"{kind}\n{VERSION}\n{content}".encode(errors="surrogateescape")).hexdigest()[:32]
    entry = cache_dir() / "index" / digest
    whole = entry / "arrays"
    if _is_whole(whole):
        return whole
    try:
        entry.mkdir(parents=True, exist_ok=True)
        with _alone(entry / "lock") as alone:
            if _is_whole(whole):  # another process was first
                return whole
            if alone:
                for left in entry.glob("making-*"):  # by a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
            making = entry / f"making-{os.getpid()}-{os.urandom(4).hex()}"
            making.mkdir()
            try:
                fill(making)
                sizes = {str(f.relative_to(making)): f.stat().st_size for f in making.rglob("*") if f.is_file()}
                about = {"kind": kind, "version": VERSION, "of": content[:1000], "bytes": sizes}
                (making / _CONTENTS).write_text(json.dumps(about, indent=1), encoding="utf-8")
                _put(making, whole)
            finally:
                shutil.rmtree(making, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"data: cannot write into {entry} ({error.strerror or error}); free some room, or name another "
            "cache folder: export XDG_CACHE_HOME=FOLDER"
        ) from error
    return whole


def _is_whole(folder: Path) -> bool:
    """Whether a folder holds all that was written into it."""
    try:
        sizes = json.loads((folder / _CONTENTS).read_bytes())["bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextmanager
def _alone(lock: Path) -> Iterator[bool]:
    """Lets one process in at a time; False where the file system has no locks, then several do the same work."""
    with lock.open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)  # ends with the process
        except (ImportError, OSError):
            yield False
        else:
            yield True


def _put(made: Path, whole: Path) -> None:
    """Renames; an entry that somebody else has put there meanwhile stays, a damaged one goes."""
    while True:
        try:
            made.rename(whole)
            return
        except OSError:
            if _is_whole(whole):
                return
            if not whole.exists():
                raise
        damaged = made.with_name(f"{made.name}-damaged")
        with suppress(FileNotFoundError):  # another process may do the same
            whole.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)


def pieces(built: Built) -> Iterator[Arrays]:
    """What a builder made, in pieces."""
    yield from [built] if isinstance(built, dict) else built


def _write(folder: Path, built: Built) -> None:
    """Writes arrays as .npy files, piece after piece."""
    files: dict[str, BinaryIO] = {}
    kinds: dict[str, np.dtype] = {}
    counts: Counter[str] = Counter()
    try:
        for piece in pieces(built):
            for name, array in piece.items():
                array = np.ascontiguousarray(array)
                if name not in files:
                    files[name], kinds[name] = (folder / f"{name}.npy").open("wb"), array.dtype
                    _head(files[name], array.dtype, 0)
                assert array.ndim == 1 and array.dtype == kinds[name], f"{name}: pieces of {array.dtype}"
                array.tofile(files[name])
                counts[name] += len(array)
        for name, file in files.items():
            file.seek(0)
            _head(file, kinds[name], counts[name])  # as long as the first one: numpy leaves room for it to grow
    finally:
        for file in files.values():
            file.close()


def _head(file: BinaryIO, dtype: np.dtype, count: int) -> None:
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, about)
