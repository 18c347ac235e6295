"""A test is worth what it catches: each bug is planted into the CUDA source, and the numerics' checks must see it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.cupy_kernels.cases import CHECKS, DECODE, SHAPES, check_decode_ffn, wrong
from tests.cupy_kernels.emulated import ORDERS, Edit, Emulator, EmulatorError, adversary, build


@dataclass(frozen=True)
class Bug:
    """kernel: whose check must see it; capability: where it runs; edit: text and what stands there instead."""

    kernel: str
    capability: tuple[int, int]
    edit: Edit


SM80, SM90 = (8, 0), (9, 0)
# What bugs break, as it stands in csrc
ROW = "(size_t)row * K + k : 0)"
FULL, EMPTY = (f"barrier_wait(pipe.{which} + pipe.stage, pipe.phase);" for which in ("full", "empty"))
EXPECT = "barrier_expect(barrier, pipe.BYTES);"
BUGS = {
    "sm80_missing_barrier": Bug("gate_up", SM80, ("    __syncthreads();  // this stage has landed for all", "    //")),
    "sm80_waits_for_one_copy_too_few": Bug("project", SM80, ("<STAGES - 2>", "<STAGES - 1>")),
    "sm80_loads_into_the_stage_in_use": Bug(
        "project", SM80, ("load(step + STAGES - 1);", "load(step + STAGES - 1), load(step + STAGES);")
    ),
    "sm80_wrong_expert": Bug("gate_up", SM80, ("b{tile.z ? gate1 : gate0, tile", "b{tile.z ? gate0 : gate1, tile")),
    "sm80_off_by_one_row": Bug("project", SM80, (ROW, ROW.replace("row", "(row ? row - 1 : 0)"))),
    "sm80_depth_past_the_end": Bug("swiglu_backward", SM80, ("k < K && n0 + n < N", "n0 + n < N && k < K - 8")),
    "sm80_transposed_fragment": Bug("swiglu_backward", SM80, ("load_matrices_transposed(b,", "load_matrices(b,")),
    "sm90_stage_released_early": Bug("gate_up", SM90, ("      wgmma_wait<1>();", "      //")),
    "sm90_does_not_wait_for_the_bytes": Bug("project", SM90, (FULL, ";")),
    "sm90_loader_does_not_wait": Bug("project", SM90, (EMPTY, ";")),
    "sm90_wrong_bytes": Bug("project", SM90, (EXPECT, EXPECT.replace("BYTES", "BYTES - 128"))),
    "sm90_wrong_expert": Bug("gate_up", SM90, ("tile.z ? up1 : up0, barrier", "tile.z ? up0 : up1, barrier")),
    "sm90_off_by_one_row": Bug("project", SM90, ("a, barrier, k, tile.x)", "a, barrier, k, tile.x + 1)")),
    "sm90_offsets_of_b_swapped": Bug(
        "swiglu_backward", SM90, ("descriptor(place + A_BYTES, BOX, 1024)", "descriptor(place + A_BYTES, 1024, BOX)")
    ),
    "sm90_phase_not_flipped": Bug("project", SM90, ("stage = 0, phase ^= 1;", "stage = 0;")),
    "sm90_last_columns_not_stored": Bug(
        "project", SM90, ("column < N) epilogue.write(row", "column < N - 8) epilogue.write(row")
    ),
    "sm90_columns_not_handed_over": Bug("gate_up", SM90, ("first = high ? other : first;", "first = first;")),
    "backward_wrong_sign": Bug("swiglu_backward", SM80, ("(1.f + g * (1.f - s))", "(1.f - g * (1.f - s))")),
    "decode_missing_barrier": Bug(
        "decode_ffn", SM90, ("  __syncthreads();\n}\n\n// ---- one token", "}\n\n// ---- one token")
    ),
    "decode_wrong_norm": Bug("decode_ffn", SM90, ("t < first ? norm0 : norm1", "t <= first ? norm0 : norm1")),
    "decode_depth_missing": Bug("decode_ffn", SM90, ("from = warp * pieces;", "from = warp * pieces + WIDE;")),
    "decode_sum_not_stored": Bug("decode_ffn", SM90, ("if (delta && blockIdx.x == 0) store(sum", "if (0) store(sum")),
    "decode_fragment_turned": Bug(
        "decode_ffn", SM90, ("{low.x, high.x, low.y, high.y}", "{low.x, low.y, high.x, high.y}")
    ),
    "decode_half_loaded_again": Bug("decode_ffn", SM90, ("k + 2 * DEEP, end)", "k + DEEP, end)")),
    "decode_token_of_the_other_expert": Bug(
        "decode_ffn", SM90, ("begin <= t && t < end)\n          h", "t < end)\n          h")
    ),
}


ADVERSARIES = list(itertools.product(("late", "mix"), ORDERS))


def source_of(bug: Bug) -> str:
    if bug.kernel == "decode_ffn":
        return "decode.cu"
    return "experts_sm80.cu" if bug.capability == SM80 else "experts_sm90.cu"


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """All at once: a compiler has one thread."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda bug: build(source_of(bug), bug.edit), BUGS.values()))


def seen(bug: Bug, emulator: Emulator, adversaries: Sequence[tuple[str, str]] = ADVERSARIES) -> bool:
    """Whether any adversary makes the numerics' check fail."""
    for copies, order in adversaries:
        with adversary(copies, order):
            try:
                if bug.kernel == "decode_ffn":
                    found = wrong(check_decode_ffn(emulator, DECODE["eight_mixed"]))
                    found += wrong(check_decode_ffn(emulator, DECODE["one_image"]))
                else:
                    found = wrong(CHECKS[bug.kernel](emulator, SHAPES["deep"]))
                    found += wrong(CHECKS[bug.kernel](emulator, SHAPES["sorted_ragged"]))
            except (EmulatorError, AssertionError):  # the emulator's own words, or two runs that differ
                return True
            if found:
                return True
    return False


@pytest.mark.parametrize("name", BUGS)
def test_bug_is_caught(name: str) -> None:
    assert seen(BUGS[name], Emulator(BUGS[name].capability, edit=BUGS[name].edit))


@pytest.mark.parametrize(("kernel", "capability"), sorted({(bug.kernel, bug.capability) for bug in BUGS.values()}))
def test_the_same_check_passes_on_the_sound_kernel(kernel: str, capability: tuple[int, int]) -> None:
    """Under one adversary; under all of them in test_numerics.py."""
    assert not seen(Bug(kernel, capability, ("", "")), Emulator(capability), ADVERSARIES[:1])
