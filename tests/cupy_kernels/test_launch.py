"""From arguments to a CUDA launch, without a device: what CuPy is handed, and what is said where it cannot run."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

import cupy_kernels
from cupy_kernels import kernels, launch
from cupy_kernels.errors import KernelError
from cupy_kernels.launch import CudaLauncher
from cupy_kernels.tiles import TileTable
from tests.cupy_kernels.cases import pair

ROOT = Path(__file__).parents[2]
DEVICE = torch.device("cuda", 0)


class Recorded:
    """A CudaLauncher whose CuPy keeps what it is handed, on a device that says what it is asked to say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0)) -> None:
        pytest.importorskip("cupy")
        self.calls: list[tuple] = []
        self.streams = iter(range(100, 200))
        self.launcher = CudaLauncher()
        self.launcher.cupy = SimpleNamespace(cuda=SimpleNamespace(Device=lambda index: nullcontext()))  # type: ignore
        self.launcher.function = lambda name, device, shared: SimpleNamespace(  # type: ignore[method-assign]
            kernel=lambda *args: self.calls.append((name, device, *args))
        )
        self.launcher.real_capability = lambda device: capability  # type: ignore[method-assign]
        monkeypatch.setattr(CudaLauncher, "multiprocessors", lambda self, device: 132)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=next(self.streams)))
        monkeypatch.setattr(launch, "_encode_tensor_map", lambda *numbers: repr(numbers).encode().ljust(128)[:128])


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(monkeypatch)


def test_every_argument_has_the_type_that_the_kernel_reads(recorded: Recorded) -> None:
    tensor = torch.zeros(4)
    recorded.launcher("some_kernel", (3,), 256, 1024, DEVICE, (tensor, None, 7, 0.5, b"m" * 128))
    name, device, grid, block, args, shared, stream = recorded.calls[0]
    assert (name, device, grid, block, shared) == ("some_kernel", 0, (3, 1, 1), (256, 1, 1), 1024)
    pointer, null, integer, real, struct = args
    assert pointer == tensor.data_ptr() and null == 0 and type(pointer) is type(null) is numpy.uint64
    assert type(integer) is numpy.int32 and type(real) is numpy.float32
    assert struct.nbytes == 128 and struct.size == 1, "CuPy passes an array of one element by value"
    assert stream.ptr == 100


def test_the_stream_is_asked_for_at_every_launch(recorded: Recorded) -> None:
    for _ in range(3):
        recorded.launcher("some_kernel", (1,), 32, 0, DEVICE, ())
    assert [call[-1].ptr for call in recorded.calls] == [100, 101, 102]


@pytest.mark.parametrize(
    ("capability", "names"),
    [
        ((9, 0), ["gate_up_sm90", "project_sm90", "swiglu_backward_sm90"]),
        ((8, 0), ["gate_up_sm80", "project_sm80", "swiglu_backward_sm80"]),
        ((12, 0), ["gate_up_sm80", "project_sm80", "swiglu_backward_sm80"]),
    ],
)
def test_hopper_takes_wgmma_and_every_other_device_mma(
    capability: tuple[int, int], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded(monkeypatch, capability)
    table = TileTable.sorted((200, 100), "cpu")
    x, downs = torch.zeros(300, 64).bfloat16(), pair(64, 96, "cpu")
    h, g, u = kernels.gate_up(recorded.launcher, x, pair(96, 64, "cpu"), pair(96, 64, "cpu"), table.tiles, keep=True)
    kernels.project(recorded.launcher, h, downs, (None, None), None, table.tiles)
    assert g is not None and u is not None
    kernels.swiglu_backward(recorded.launcher, x, downs, g, u, table.tiles)
    assert [call[0] for call in recorded.calls] == names
    grids = [call[2] for call in recorded.calls]  # 3 tiles of rows, 1 or 2 of columns
    assert grids == ([(3, 1, 1)] * 3 if capability[0] == 9 else [(3, 2, 1), (3, 1, 1), (3, 1, 1)])


@pytest.mark.parametrize("status", [0, 201])
def test_a_tensor_map_is_encoded_within_the_matrix_own_device(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of autograd's has no context; the driver encodes nothing without one."""
    runtime, driver = pytest.importorskip("cupy.cuda").runtime, pytest.importorskip("cuda.bindings.driver")
    current, encoded_on = [0], []
    monkeypatch.setattr(runtime, "getDevice", lambda: current[-1])
    monkeypatch.setattr(runtime, "setDevice", current.append)

    def encode(*_: Any) -> tuple[int, Any]:
        encoded_on.append(current[-1])
        return status, driver.CUtensorMap()

    monkeypatch.setattr(driver, "cuTensorMapEncodeTiled", encode)
    launch._encode_tensor_map.cache_clear()
    if status:
        with pytest.raises(KernelError, match="no tensor map for a matrix"):
            launch._encode_tensor_map(4096, 64, 64, 128, 64, 3)
    else:
        assert len(launch._encode_tensor_map(4096, 64, 64, 128, 64, 3)) == launch.TENSOR_MAP_BYTES
    launch._encode_tensor_map.cache_clear()
    assert encoded_on == [3] and current == [0, 3, 0]


def test_importing_needs_neither_cupy_nor_a_driver() -> None:
    code = "import sys; sys.modules['cupy'] = sys.modules['cuda'] = None\n"
    code += "import cupy_kernels, cupy_kernels.ops, torch; from cupy_kernels.tiles import TileTable\n"
    code += "w = torch.ones(8, 8); t = TileTable.sorted((1, 1), 'cpu')\n"
    code += "print(cupy_kernels.ops.project(torch.ones(2, 8), (w, 2 * w), t).tolist()[1][0])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "16.0\n"), ran.stderr


def test_why_not_names_the_first_thing_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    assert cupy_kernels.why_not() == "CuPy is not installed; pip install 'mmframe[cuda]'"
    monkeypatch.setattr(launch, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cupy_kernels.why_not() == "torch sees no CUDA device"
    launch._cuda.cache_clear()
    with pytest.raises(KernelError, match="cupy_kernels: torch sees no CUDA device"):
        launch.launcher_for(DEVICE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: ((8, 0), (7, 5))[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    assert cupy_kernels.why_not() == "device 1, Tesla T4, is older than sm_80"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert cupy_kernels.why_not() is None


def test_the_emulator_gives_and_takes_back_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    host: Any = object()
    cpu = torch.device("cpu")
    assert launch.launcher_for(cpu) is None
    with launch.on_host(host):
        assert launch.launcher_for(cpu) is host
    assert launch.launcher_for(cpu) is None
