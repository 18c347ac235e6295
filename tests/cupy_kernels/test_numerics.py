"""Every kernel in the emulator against float64: ragged shapes, late and mixed completion, three orders of threads."""

from __future__ import annotations

import itertools

import pytest

from cupy_kernels import kernels
from cupy_kernels.launch import PROJECT_COLUMNS
from tests.cupy_kernels.cases import CHECKS, DECODE, SHAPES, WIDTHS, check_decode_ffn, tiles_of, wrong
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
    family = "sm80" if arch == "sm_80" else "sm90"
    assert all(name.startswith(f"{kernel}_{family}") for name in emulator.launched)


@pytest.mark.parametrize("case", DECODE)
def test_decoding_agrees_with_float64(case: str) -> None:
    emulator = Emulator()
    for order in ORDERS:
        with adversary("late", order):
            assert wrong(check_decode_ffn(emulator, DECODE[case])) == [], order
    variant = "one" if DECODE[case][0] == 1 else "few"
    assert set(emulator.launched) == {f"decode_gate_up_{variant}", f"decode_down_{variant}"}


@pytest.mark.parametrize(("kernel", "columns"), WIDTHS)
def test_tiles_of_every_width_agree_with_float64(kernel: str, columns: int) -> None:
    emulator = Emulator()
    with tiles_of(columns):
        for (copies, order), name in itertools.product(ADVERSARIES[:2], ("sorted_ragged", "deep")):
            with adversary(copies, order):
                assert wrong(CHECKS[kernel](emulator, SHAPES[name])) == [], (copies, order)
    assert set(emulator.launched) == {f"{kernel}_sm90_{columns}"}


@pytest.mark.parametrize(
    ("rows", "columns", "best"),
    [(320, 2048, 64), (1088, 2048, 160), (1088, 1024, 96), (3392, 2048, 256), (4096, 8192, 256), (64, 64, 64)],
)
def test_the_width_is_what_was_fastest_on_an_h100(rows: int, columns: int, best: int) -> None:
    row_tiles = 1 + -(-(rows - 64) // 128)  # 64 rows of text
    assert kernels.tile_columns(132, row_tiles, columns, PROJECT_COLUMNS) == best


@pytest.mark.parametrize("blocks", [1, 2, 64])
def test_persistent_blocks_share_the_tiles_whatever_their_number(blocks: int) -> None:
    for check in CHECKS.values():
        assert wrong(check(Emulator((9, 0), blocks=blocks), SHAPES["text_image_text"])) == []
