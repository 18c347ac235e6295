"""Every kernel in the emulator against float64: ragged shapes, late and mixed completion, three orders of threads."""

from __future__ import annotations

import itertools

import pytest

from tests.cupy_kernels.cases import CHECKS, DECODE, SHAPES, check_decode_ffn, wrong
from tests.cupy_kernels.emulated import ORDERS, Emulator, adversary

CAPABILITIES = {"sm_80": (8, 0), "sm_90a": (9, 0)}
ADVERSARIES = [*itertools.product(("late", "mix"), ORDERS), ("eager", "forward")]


@pytest.mark.parametrize("arch", CAPABILITIES)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kernel", CHECKS)
def test_kernel_agrees_with_float64(kernel: str, name: str, arch: str) -> None:
    emulator = Emulator(CAPABILITIES[arch])
    for copies, order in ADVERSARIES:
        with adversary(copies, order):
            assert wrong(CHECKS[kernel](emulator, SHAPES[name])) == [], (copies, order)
    assert set(emulator.launched) == {f"{kernel}_{'sm80' if arch == 'sm_80' else 'sm90'}"}


@pytest.mark.parametrize("case", DECODE)
def test_decoding_agrees_with_float64(case: str) -> None:
    emulator = Emulator()
    for order in ORDERS:
        with adversary("late", order):
            assert wrong(check_decode_ffn(emulator, DECODE[case])) == [], order
    tokens = DECODE[case][0]
    variant = next(n for n in (1, 2, 4, 8) if n >= tokens)
    assert set(emulator.launched) == {f"decode_gate_up_{variant}", f"decode_down_{variant}"}


@pytest.mark.parametrize("blocks", [1, 2, 64])
def test_persistent_blocks_share_the_tiles_whatever_their_number(blocks: int) -> None:
    for check in CHECKS.values():
        assert wrong(check(Emulator((9, 0), blocks=blocks), SHAPES["text_image_text"])) == []
