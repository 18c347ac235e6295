"""The launcher of the emulator: the same kernels, built for the host, behind the same interface as CUDA's."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cupy_kernels.compiler import SOURCES
from cupy_kernels.launch import BOX_COLUMNS, SOURCE_OF, TENSOR_MAP_BYTES, Argument

EMULATOR = Path(__file__).parent / "emulator"
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-Wno-unknown-pragmas", "-Wno-psabi")
WORKERS = 2
ORDERS = ("forward", "reverse", "random:1")


class EmulatorError(RuntimeError):
    """The emulator found something that a GPU must not do."""


def compiler() -> str:
    """The host's C++ compiler; tests that need it are skipped without one, but in CI they fail."""
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if not found:
        if os.environ.get("CI"):
            pytest.fail("no C++ compiler, which the emulator needs; install g++")
        pytest.skip("no C++ compiler, which the emulator needs; install g++")
    return found


Edit = tuple[str, str]
"""(text of a kernel, what stands there instead): a planted bug. The text must stand exactly once in csrc."""


@functools.cache
def build(source: str, edit: Edit | None = None, flags: tuple[str, ...] = ()) -> Path:
    """A shared library of one source with the emulator, kept by content in the temporary folder.

    Args:
        source: Name of a file in csrc.
        edit: A planted bug.
        flags: Further flags.
    """
    texts = {path.name: path.read_text() for path in sorted(SOURCES.iterdir())}
    if edit:
        places = [name for name, text in texts.items() if edit[0] in text]
        assert len(places) == 1 and texts[places[0]].count(edit[0]) == 1, f"{edit[0]!r} stands in {places}"
        texts[places[0]] = texts[places[0]].replace(*edit)
        flags = (*flags, "-O1")  # there are many of them, and each runs once
    runtime = _compiled("emulator.o", {}, EMULATOR / "emulator.cpp", (*flags, "-c"))
    return _compiled(f"{source}.so", texts, source, (*flags, "-shared", str(runtime), "-lpthread"))


def _compiled(name: str, texts: dict[str, str], source: str | Path, flags: tuple[str, ...]) -> Path:
    folder = Path(tempfile.gettempdir()) / f"cupy_kernels_emulator_{os.getuid()}"
    march = () if any("sanitize" in flag for flag in flags) else ("-march=native",)
    words = [compiler(), *FLAGS, *march]
    host = [path.read_text() for path in sorted(EMULATOR.iterdir())]
    key = hashlib.sha256("\0".join([*words, *flags, str(source), *texts.values(), *host, _cpu()]).encode()).hexdigest()
    made = folder / f"{key[:24]}.{name}"
    if made.is_file():
        return made
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        for file, text in texts.items():
            (Path(work) / file).write_text(text)
        part = Path(work) / name
        inputs = ["-x", "c++", str(Path(work) / source), "-x", "none"]
        ran = subprocess.run(
            [*words, f"-I{work}", f"-I{EMULATOR}", *inputs, "-o", str(part), *flags], capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        os.replace(part, made)
    return made


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    return (
        next((line for line in path.read_text().splitlines() if line.startswith("flags")), "") if path.is_file() else ""
    )


@functools.cache
def _load(library: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(library))


class Emulator:
    """A launcher for tensors on the CPU.

    Args:
        capability: (8, 0) for the mma.sync kernels, (9, 0) for Hopper's.
        edit: A planted bug (see `build`).
        blocks: Multiprocessors that it claims to have: how many persistent blocks run.
    """

    def __init__(self, capability: tuple[int, int] = (9, 0), edit: Edit | None = None, blocks: int = 3) -> None:
        self._capability, self.edit, self.blocks = capability, edit, blocks
        self.launched: list[str] = []

    def capability(self, device: torch.device) -> tuple[int, int]:
        return self._capability

    def multiprocessors(self, device: torch.device) -> int:
        return self.blocks

    def tensor_map(self, matrix: Tensor, box_rows: int) -> bytes:
        assert box_rows <= 256 and matrix.data_ptr() % 16 == 0 and matrix.stride(0) * 2 % 16 == 0, "as CUDA refuses it"
        rows, columns = matrix.shape
        packed = struct.pack("<QQQQII", matrix.data_ptr(), columns, rows, matrix.stride(0) * 2, BOX_COLUMNS, box_rows)
        return packed.ljust(TENSOR_MAP_BYTES, b"\0")

    def __call__(
        self, name: str, grid: Sequence[int], threads: int, shared: int, device: torch.device, args: Sequence[Argument]
    ) -> None:
        self.launched.append(name)
        library = _load(build(SOURCE_OF[name], self.edit))
        library.emulator_message.restype = ctypes.c_char_p
        boxes = [_box(value) for value in args]
        pointers = (ctypes.c_void_p * len(boxes))(*(ctypes.addressof(box) for box in boxes))
        shape = (ctypes.c_uint * 3)(*(*grid, 1, 1)[:3])
        block = (ctypes.c_uint * 3)(threads, 1, 1)
        code = getattr(library, f"launch_{name}")(shape, block, ctypes.c_size_t(shared), pointers, WORKERS)
        if code:
            raise EmulatorError(library.emulator_message().decode() if code == 3 else f"launch refused ({code})")


def _box(value: Argument) -> ctypes.Array | ctypes._SimpleCData:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if value is None:
        return ctypes.c_void_p(0)
    if isinstance(value, bytes):
        return ctypes.create_string_buffer(value, len(value))
    return ctypes.c_int(value) if isinstance(value, int) else ctypes.c_float(value)


@contextmanager
def adversary(copies: str, order: str) -> Iterator[None]:
    """Within, the emulator completes asynchronous work so (late, mix, eager) and runs threads in that order."""
    before = {key: os.environ.get(key) for key in ("EMULATOR_ASYNC", "EMULATOR_ORDER")}
    os.environ.update(EMULATOR_ASYNC=copies, EMULATOR_ORDER=order)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
