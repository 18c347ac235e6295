"""From a kernel's name and its arguments to a launch: on a CUDA device by CuPy, on torch's current stream.

Tensors go as raw pointers: on the same stream, so torch's allocator keeps them long enough; nothing is copied.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from cupy_kernels.compiler import SOURCES, compile_source
from cupy_kernels.errors import KernelError

Argument = Tensor | int | float | bytes | None
"""A pointer, an int32, an fp32, a struct, a null pointer."""

TENSOR_MAP_BYTES = 128
BOX_COLUMNS = 64
"""Columns of a TMA box: 128 bytes of bf16, the width of the swizzle."""

GATE_UP_COLUMNS = 128, 192, 256  # half of them gate's
PROJECT_COLUMNS = 64, 96, 128, 160, 192, 256
"""Widths of a tile on Hopper that there is a kernel for."""

SOURCE_OF = {
    **{f"{name}_sm80": "experts_sm80.cu" for name in ("gate_up", "project", "swiglu_backward")},
    **{f"gate_up_sm90_{columns}": "experts_sm90.cu" for columns in GATE_UP_COLUMNS},
    **{f"project_sm90_{columns}": "experts_sm90.cu" for columns in PROJECT_COLUMNS},
    "swiglu_backward_sm90": "experts_sm90.cu",
    **{f"{name}_{n}": "decode.cu" for name in ("decode_gate_up", "decode_down") for n in ("one", "few")},
}
"""Kernel -> file in csrc/."""


class Launcher(Protocol):
    """Runs kernels. There are two: CUDA, and in tests an emulator on the host."""

    def capability(self, device: torch.device) -> tuple[int, int]:
        """Compute capability that kernels are chosen for."""
        ...

    def multiprocessors(self, device: torch.device) -> int: ...

    def tensor_map(self, matrix: Tensor, box_rows: int) -> bytes:
        """Describes a contiguous matrix [rows, columns] of bf16 to TMA, in boxes of `box_rows` x BOX_COLUMNS."""
        ...

    def __call__(
        self, name: str, grid: Sequence[int], threads: int, shared: int, device: torch.device, args: Sequence[Argument]
    ) -> None: ...


_on_host: Launcher | None = None


@contextmanager
def on_host(launcher: Launcher) -> Iterator[None]:
    """Within, tensors on the CPU go through `launcher` instead of the torch reference: how kernels are tested."""
    global _on_host
    before, _on_host = _on_host, launcher
    try:
        yield
    finally:
        _on_host = before


def launcher_for(device: torch.device) -> Launcher | None:
    """What runs kernels on a device; None: nothing does, take the torch reference."""
    return _cuda() if device.type == "cuda" else _on_host if device.type == "cpu" else None


def why_not() -> str | None:
    """Why the kernels cannot run here, in one clause; None where they can."""
    if _on_host is not None:
        return None
    if find_spec("cupy") is None:
        return "CuPy is not installed; pip install 'mmframe[cuda]'"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    old = [i for i in range(torch.cuda.device_count()) if torch.cuda.get_device_capability(i) < (8, 0)]
    if old:
        return f"device {old[0]}, {torch.cuda.get_device_name(old[0])}, is older than sm_80"
    return None


@functools.cache
def _cuda() -> CudaLauncher:
    if reason := why_not():
        raise KernelError(f"cupy_kernels: {reason}")
    return CudaLauncher()


class CudaLauncher:
    """CuPy's RawModule and its driver's launch, one table of functions for each device.

    The arguments are packed here: CuPy's own call wraps each of a dozen in an object, which took longer than a kernel.

    Args:
        choose_for: Takes the kernels of this compute capability instead of the device's own: on Hopper, (8, 0) runs
            the mma.sync kernels.
    """

    def __init__(self, choose_for: tuple[int, int] | None = None) -> None:
        import cupy
        from cupy_backends.cuda.api import driver  # pyright: ignore[reportAttributeAccessIssue]

        self.cupy, self.driver, self.choose_for = cupy, driver, choose_for
        self.stream: Callable[[int], int] = torch._C._cuda_getCurrentRawStream  # what torch.cuda.current_stream wraps
        self.function = functools.cache(self._function)
        self.real_capability = functools.cache(torch.cuda.get_device_capability)

    def capability(self, device: torch.device) -> tuple[int, int]:
        return self.choose_for or self.real_capability(device)

    @functools.cache  # noqa: B019  there is one launcher, for the life of the process
    def multiprocessors(self, device: torch.device) -> int:
        return torch.cuda.get_device_properties(device).multi_processor_count

    def tensor_map(self, matrix: Tensor, box_rows: int) -> bytes:
        rows, columns = matrix.shape
        return _encode_tensor_map(matrix.data_ptr(), rows, columns, box_rows, matrix.get_device())

    def _function(self, name: str, device: int, shared: int) -> Any:
        major, minor = self.real_capability(device)
        arch = f"sm_{major}{minor}" + ("a" if "_sm90" in name else "")
        cubin = compile_source(SOURCES / SOURCE_OF[name], arch)
        kernel = self.cupy.RawModule(path=str(cubin.path)).get_function(name)
        if shared > 48 << 10:
            kernel.max_dynamic_shared_size_bytes = shared
        return kernel.kernel

    def __call__(
        self, name: str, grid: Sequence[int], threads: int, shared: int, device: torch.device, args: Sequence[Argument]
    ) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        with self.cupy.cuda.Device(index):
            function = self.function(name, index, shared)
            # never kept: a CUDA graph's capture and the user's `with torch.cuda.stream` both change it
            stream = self.stream(index)
            packed, offsets = pack(args)
            first = ctypes.cast(ctypes.c_char_p(packed), ctypes.c_void_p).value or 0
            params = (ctypes.c_void_p * len(args))(*[first + offset for offset in offsets])
            shape = (*grid, 1, 1)[:3]
            self.driver.launchKernel(function.ptr, *shape, threads, 1, 1, shared, stream, ctypes.addressof(params), 0)


def pack(args: Sequence[Argument]) -> tuple[bytes, tuple[int, ...]]:
    """The arguments one after another, and where each begins."""
    kinds, values = "", []
    for value in args:
        if value is None:
            kinds += "p"
            values.append(0)
        elif isinstance(value, Tensor):
            kinds += "p"
            values.append(value.data_ptr())
        else:
            kinds += "m" if isinstance(value, bytes) else "i" if isinstance(value, int) else "f"
            values.append(value)
    layout, offsets = _layout(kinds)
    return layout.pack(*values), offsets


KINDS = {"p": "Q", "m": f"{TENSOR_MAP_BYTES}s", "i": "i4x", "f": "f4x"}
"""Of an argument -> its format, a multiple of 8 bytes, so that each is aligned."""


@functools.cache
def _layout(kinds: str) -> tuple[struct.Struct, tuple[int, ...]]:
    sizes = [struct.calcsize(KINDS[kind]) for kind in kinds]
    return struct.Struct("".join(KINDS[kind] for kind in kinds)), tuple(itertools.accumulate(sizes[:-1], initial=0))


@functools.lru_cache(maxsize=8192)
def _encode_tensor_map(address: int, rows: int, columns: int, box_rows: int, device: int) -> bytes:
    """CUtensorMap of a contiguous bf16 matrix. It says nothing but these numbers, so it may be kept."""
    from cupy.cuda import runtime as cuda_runtime

    runtime: Any = cuda_runtime  # CuPy's own types take it for a flag

    try:
        from cuda.bindings import driver  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise KernelError(f"cupy_kernels: TMA needs cuda-bindings ({error}); pip install 'mmframe[cuda]'") from error
    u32, u64 = driver.cuuint32_t, driver.cuuint64_t
    before = runtime.getDevice()
    runtime.setDevice(device)  # gives the thread a context: one of autograd's has none, and the driver then refuses
    try:
        status, encoded = driver.cuTensorMapEncodeTiled(
            driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            2,
            address,
            [u64(columns), u64(rows)],
            [u64(columns * 2)],
            [u32(BOX_COLUMNS), u32(box_rows)],
            [u32(1), u32(1)],
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    finally:
        runtime.setDevice(before)
    if int(status) != 0:
        raise KernelError(f"cupy_kernels: no tensor map for a matrix [{rows}, {columns}] at {address:#x}: {status!r}")
    return ctypes.string_at(int(encoded.getPtr()), TENSOR_MAP_BYTES)
