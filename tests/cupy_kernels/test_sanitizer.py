"""AddressSanitizer over the emulated kernels: no byte outside of a tensor is touched, and one that is, is seen."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cupy_kernels.emulated import build, compiler

ROOT = Path(__file__).parents[2]
FLAGS = ("-fsanitize=address", "-g", "-O1")
SCRIPT = """
from tests.cupy_kernels import emulated
from tests.cupy_kernels.cases import CHECKS, DECODE, SHAPES, check_decode_ffn, wrong
plain = emulated.build
emulated.build = lambda source, edit=None: plain(source, edit, {flags!r})
for capability in ((8, 0), (9, 0)):
    run = emulated.Emulator(capability)
    for check in CHECKS.values():
        assert wrong(check(run, SHAPES["sorted_ragged"])) == []
assert wrong(check_decode_ffn(run, DECODE["three_mixed"])) == []
print("clean", flush=True)

import torch
from cupy_kernels import kernels
from tests.cupy_kernels.cases import pair
table = SHAPES["sorted_ragged"].table("cpu")
table.tiles[-1, 0] += 8  # the last tile runs past the tensor
x = torch.randn(203, 136).bfloat16()
kernels.project(emulated.Emulator((8, 0)), x, pair(72, 136, "cpu"), (None, None), None, table.tiles)
print("not seen")
"""


def test_kernels_stay_inside_of_their_tensors_and_one_that_does_not_is_seen() -> None:
    library = subprocess.run([compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(library).is_file():
        pytest.skip(f"{compiler()} has no AddressSanitizer")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda source: build(source, None, FLAGS), ("experts_sm80.cu", "experts_sm90.cu", "decode.cu")))
    environment = os.environ | {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    code = SCRIPT.format(flags=FLAGS)
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.stdout == "clean\n", ran.stderr[-2000:]
    assert "AddressSanitizer: heap-buffer-overflow" in ran.stderr
