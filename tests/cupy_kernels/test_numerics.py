"""Every kernel in the emulator against float64: ragged shapes, late and mixed completion, three orders of threads."""

from __future__ import annotations

import itertools

import pytest
import torch

from cupy_kernels import kernels, reference
from tests.cupy_kernels.cases import CHECKS, DECODE, SHAPES, Shape, check_decode_ffn, matrix, pair, wide, wrong
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
    variant = "one" if DECODE[case][0] == 1 else "few"
    assert set(emulator.launched) == {f"decode_gate_up_{variant}", f"decode_down_{variant}"}


NARROW_AND_DEEP = Shape(((0, 9), (1, 20)), 136, 1160)
"""4 tiles of 19 steps, as the down projection has few tiles of many."""


@pytest.mark.parametrize("blocks", [3, 5, 64])
def test_tiles_that_blocks_share_are_added_up_in_the_same_way_every_time(blocks: int) -> None:
    """With 3 blocks a tile has at most two parts and the last is whole; with 64 asked for 9 run, three to a tile."""
    torch.manual_seed(0)
    table = NARROW_AND_DEEP.table("cpu")
    x, weights = matrix(NARROW_AND_DEEP.rows, 1160, "cpu"), pair(136, 1160, "cpu")
    want = reference.project(x.double(), wide(weights), (None, None), None, table.spans)
    found = []
    for copies, order in (("late", "forward"), ("mix", "reverse"), ("eager", "random:1")):
        with adversary(copies, order):
            run = Emulator((9, 0), blocks=blocks)
            found.append(kernels.project(run, x, weights, (None, None), None, table.tiles))
    assert wrong({"y": (found[0], want)}) == []
    assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.parametrize("tiles", [1, 2, 48, 131, 132, 144, 300, 432])
@pytest.mark.parametrize("depth", [64, 2048, 8192])
def test_every_step_is_done_once_and_no_block_does_much_more_than_another(tiles: int, depth: int) -> None:
    """The schedule of the .cu in Python, at the sizes of a GPU."""
    multiprocessors, steps = 132, depth // 64
    blocks, whole = kernels.shares(Emulator((9, 0), blocks=multiprocessors), torch.device("cpu"), tiles, depth)
    shared = (tiles - whole) * steps
    bounds = [shared * block // blocks for block in range(blocks + 1)]
    of_block = [len(range(b, whole, blocks)) * steps + bounds[b + 1] - bounds[b] for b in range(blocks)]
    assert sum(of_block) == tiles * steps and max(of_block) - min(of_block) <= 1
    assert blocks <= multiprocessors and min(of_block) >= min(steps, kernels.LEAST_STEPS)
    assert tiles - whole < 2 * blocks
    for step in range(shared):
        block = ((step + 1) * blocks - 1) // shared
        assert bounds[block] <= step < bounds[block + 1], "block_of finds whose step it is"


@pytest.mark.parametrize("blocks", [1, 2, 64])
def test_persistent_blocks_share_the_tiles_whatever_their_number(blocks: int) -> None:
    for check in CHECKS.values():
        assert wrong(check(Emulator((9, 0), blocks=blocks), SHAPES["text_image_text"])) == []
