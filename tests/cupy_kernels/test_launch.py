"""From arguments to a CUDA launch, without a device: what CuPy is handed, and what is said where it cannot run."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
    """A CudaLauncher whose driver keeps what it is handed, on a device that says what it is asked to say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0)) -> None:
        pytest.importorskip("cupy")
        self.calls: list[tuple] = []
        self.streams = iter(range(100, 200))
        self.launcher = CudaLauncher()
        self.launcher.cupy = SimpleNamespace(cuda=SimpleNamespace(Device=lambda index: nullcontext()))  # type: ignore
        self.names: list[str] = []
        self.kinds: list[Any] = []  # of the kernel's parameters, in C
        self.launcher.function = self.function  # type: ignore[method-assign]
        self.launcher.driver = SimpleNamespace(launchKernel=self.launch)  # type: ignore[assignment]
        self.launcher.real_capability = lambda device: capability  # type: ignore[method-assign]
        monkeypatch.setattr(CudaLauncher, "multiprocessors", lambda self, device: 132)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        self.launcher.stream = lambda index: next(self.streams)
        monkeypatch.setattr(launch, "_encode_tensor_map", lambda *numbers: repr(numbers).encode().ljust(128)[:128])

    def function(self, name: str, device: int, shared: int) -> Any:
        self.names.append(name)
        return SimpleNamespace(ptr=len(self.names) - 1)

    def launch(self, function: int, *shape_and_stream: int) -> None:
        """Reads the arguments as the driver does."""
        *grid_and_block, shared, stream, params, extra = shape_and_stream
        assert extra == 0
        places = (ctypes.c_void_p * len(self.kinds)).from_address(params)
        values = [kind.from_address(place) for kind, place in zip(self.kinds, places, strict=True)]
        values = [bytes(v) if isinstance(v, ctypes.Array) else v.value for v in values]
        self.calls.append((self.names[function], tuple(grid_and_block), shared, stream, values))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(monkeypatch)


def test_every_argument_has_the_type_that_the_kernel_reads(recorded: Recorded) -> None:
    tensor = torch.zeros(4)
    pointer = ctypes.c_size_t
    recorded.kinds = [ctypes.c_char * 128, pointer, ctypes.c_int32, pointer, ctypes.c_int32, ctypes.c_float]
    recorded.launcher("some_kernel", (3,), 256, 1024, DEVICE, (b"m\0" * 64, tensor, 7, None, -1, 0.5))
    name, shape, shared, stream, values = recorded.calls[0]
    assert (name, shape, shared, stream) == ("some_kernel", (3, 1, 1, 256, 1, 1), 1024, 100)
    assert values == [b"m\0" * 64, tensor.data_ptr(), 7, 0, -1, 0.5]


def test_the_stream_is_asked_for_at_every_launch(recorded: Recorded) -> None:
    recorded.kinds = [ctypes.c_int32]
    for _ in range(3):
        recorded.launcher("some_kernel", (1,), 32, 0, DEVICE, (7,))
    assert [call[3] for call in recorded.calls] == [100, 101, 102]


@pytest.mark.parametrize(
    ("capability", "names"),
    [
        ((9, 0), ["gate_up_sm90_128", "project_sm90_64", "swiglu_backward_sm90"]),
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
    grids = [call[1][:3] for call in recorded.calls]  # 3 tiles of rows, 2 or 1 of columns
    assert grids == [(6, 1, 1) if capability[0] == 9 else (3, 2, 1), (3, 1, 1), (3, 1, 1)]


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
            launch._encode_tensor_map(4096, 64, 64, 64, 3)
    else:
        assert len(launch._encode_tensor_map(4096, 64, 64, 64, 3)) == launch.TENSOR_MAP_BYTES
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
