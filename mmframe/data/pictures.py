"""Pictures of records, wherever they lie: in a file of their own, inside a larger file, or in memory."""

from __future__ import annotations

import io
import os
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from mmframe.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

_HEAD = 65536  # bytes; nearly every header lies within
_open_files: dict[str, int] = {}  # descriptors of this process, by path
_open_by = os.getpid()
_lock = threading.Lock()  # evaluation decodes pictures in threads
_MOST_OPEN = 128


@dataclass(frozen=True)
class FilePart:
    """A picture inside a larger file, e.g. a member of a tar shard.

    Attributes:
        file: path, or URL that fsspec knows.
        offset, size: where it lies, bytes.
        name: of the part, for messages.
    """

    file: str
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.file}!{self.name}"

    def read(self, count: int | None = None) -> bytes:
        """The first `count` bytes of the part; None: all.

        Raises:
            UserError: the file cannot be read, or is shorter than its index says.
        """
        count = self.size if count is None else min(count, self.size)
        try:
            data = read_range(self.file, self.offset, count)
        except Exception as error:  # what fsspec's file systems raise is theirs to choose
            raise UserError(f"cannot read {self}: {error or type(error).__name__}") from error
        if len(data) != count:
            raise UserError(
                f"cannot read {self}: the file ends {count - len(data)} bytes too early; it was cut off or has changed "
                "since it was indexed"
            )
        return data


@dataclass(frozen=True, eq=False)
class Embedded:
    """A picture whose bytes came with its record, e.g. from a Parquet file."""

    name: str
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name

    def read(self, count: int | None = None) -> bytes:
        return self.data[:count]


class Cell(ABC):
    """A picture in a file that has to be decoded to find it: a table of base64, a Parquet file. Its text names it."""

    @abstractmethod
    def read(self, count: int | None = None) -> bytes:
        """The first `count` bytes of the picture's file; None: all. A UserError names the place."""


Picture: TypeAlias = Path | FilePart | Embedded | Cell


class _Named(io.BytesIO):
    """Bytes that errors can name."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


def open_picture(picture: Picture, max_pixels: int | None = None) -> Image.Image:
    """As `mmframe.images.open_image`: RGB, upright, decoded; a UserError names the file and the part."""
    from mmframe.images import MAX_PIXELS, open_image  # here: it loads torch, which naming pictures does not need

    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
    source = picture if isinstance(picture, Path) else _Named(picture.read(), str(picture))
    return open_image(source, max_pixels)


def picture_size(picture: Picture) -> tuple[int, int]:
    """(width, height) that `open_picture` would give, read from the header alone; a UserError names file and part."""
    from mmframe.images import image_size

    if isinstance(picture, Path):
        return image_size(picture)
    head = picture.read(_HEAD)
    try:
        return image_size(_Named(head, str(picture)))
    except UserError:
        whole = picture.read()
        if len(whole) == len(head):
            raise
        return image_size(_Named(whole, str(picture)))


def read_range(file: str, offset: int, count: int) -> bytes:
    """`count` bytes of a local file or an fsspec URL, from `offset` on; fewer where the file ends.

    Local files are read with pread and stay open, up to a limit for each process: nothing is mapped, so memory does
    not grow with what was read.
    """
    if "://" in file:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(file)
        return filesystem.cat_file(path, start=offset, end=offset + count)
    return os.pread(_descriptor(file), count, offset)


def _descriptor(file: str) -> int:
    global _open_by, _lock
    if os.getpid() != _open_by:  # a forked loader process: these are copies of its parent's
        _open_files.clear()
        _open_by, _lock = os.getpid(), threading.Lock()
    with _lock:
        known = _open_files.pop(file, None)
        if known is None:
            if len(_open_files) >= _MOST_OPEN:
                os.close(_open_files.pop(next(iter(_open_files))))
            known = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        _open_files[file] = known  # the last used comes last
    return known
