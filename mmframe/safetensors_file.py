"""safetensors files tensor by tensor: reader and writer hold one tensor at a time.

The layout is the library's own (header length, JSON header, raw bytes), and the library checks what is read. It maps
whole files, whose pages count as memory of the process, and writes only what is all in memory; hence these lines.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmframe.checkpoint_files import sync_folder
from mmframe.errors import UserError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """What a header says of one tensor; `start` is the place of its first byte in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


class SafetensorsFile:
    """A file of tensors: the header is read and checked at once, a tensor when it is asked for.

    Args:
        path: The file.

    Raises:
        UserError: truncated, damaged, or of another format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with safe_open(str(path), framework="pt"):  # refuses bad offsets and files that are cut off
                pass
            with open(path, "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
            self.entries = {
                name: Entry(DTYPES[item["dtype"]], tuple(item["shape"]), 8 + size + item["data_offsets"][0])
                for name, item in header.items()
            }
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} is damaged or no safetensors file: {error}; fetch or write it again") from error
        except KeyError as error:
            raise UserError(f"{path}: tensors of type {error} are not supported") from error

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own."""
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
        with open(self.path, "rb") as file:
            file.seek(entry.start)
            if file.readinto(_bytes(tensor)) != entry.nbytes:
                raise UserError(f"{self.path}: ends inside of tensor {name}; fetch or write it again")
        return tensor


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def write_safetensors(
    path: str | Path,
    entries: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file; it appears under its name only when it is whole and on the disk.

    Args:
        path: The file.
        entries: Name -> dtype and shape of everything that will come.
        tensors: (name, tensor), each once, in any order; one at a time is in memory.
        metadata: Text for the header.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    places, end = {}, 0
    for name in sorted(entries, key=lambda name: -entries[name][0].itemsize):  # wide types first: all stay aligned
        dtype, shape = entries[name]
        places[name] = entry = Entry(dtype, tuple(shape), end)
        end += entry.nbytes
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [entry.start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(Path(path)) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            entry = places.pop(name)
            assert (tensor.dtype, tuple(tensor.shape)) == (entry.dtype, entry.shape), name
            file.seek(8 + len(text) + entry.start)
            file.write(_bytes(tensor.detach().cpu().contiguous()))
        assert not places, f"{len(places)} tensors were announced and did not come, first {next(iter(places), '')}"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name when it is whole: temporary name, fsync, rename; removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
