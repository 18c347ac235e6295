"""The checks of on_device.py under pytest: `pytest -m gpu`. Without a GPU only their way is walked."""

from __future__ import annotations

import inspect

import pytest
import torch

from cupy_kernels import launch
from tests.cupy_kernels import on_device


@pytest.mark.gpu
@pytest.mark.parametrize("name", on_device.ALL)
def test_on_the_device(name: str) -> None:
    if launch.why_not() is not None:
        pytest.skip(f"cupy kernels: {launch.why_not()}")
    on_device.ALL[name](torch.device("cuda", 0))


def test_the_checks_run_on_the_host_but_for_streams_and_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in a check must not be found on a device that is lent for minutes."""
    from tests.cupy_kernels.emulated import Emulator

    monkeypatch.setattr(on_device, "CudaLauncher", lambda choose_for=None: Emulator(choose_for or (9, 0)))
    monkeypatch.setattr(on_device, "MEDIUM", on_device.Shape(((0, 30), (1, 70)), 64, 72))
    monkeypatch.setattr(on_device, "PREFILLS", ((9, 20),))
    monkeypatch.setattr(on_device, "DOWN", (136, 136))
    checks = on_device.kernel_checks(["sorted_ragged"])
    for name in (
        "gradients agree with float64",
        "two runs are equal to the last bit",
        "full sizes agree with float64 whatever the width of tiles",
    ):
        checks[name] = on_device.CHECKS_OF_MORE[name]
    with launch.on_host(Emulator()):
        for check in checks.values():
            check(torch.device("cpu"))


def test_no_check_is_left_out() -> None:
    """Each function of the file that takes a device alone is a check, and none hides another's name."""
    written = {
        check
        for check in vars(on_device).values()
        if inspect.isfunction(check) and list(inspect.signature(check).parameters) == ["device"]
    }
    assert written == set(on_device.CHECKS_OF_MORE.values())
    kernels = on_device.kernel_checks(list(on_device.SHAPES))
    assert len(on_device.ALL) == len(kernels) + len(written)
