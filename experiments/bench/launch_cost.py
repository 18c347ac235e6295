"""What an operator costs the host: Python and the dispatcher with nothing launched, and on a GPU all of it.

`python -m experiments.bench.launch_cost` prints microseconds a call, and for CUDA the functions that take most of them.
Eager prefill is bound by this where the batch is small. The device is given nothing to wait for: the shapes are small,
and calls are only queued while they are timed.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cupy_kernels import launch
from cupy_kernels.launch import TENSOR_MAP_BYTES, Argument
from cupy_kernels.ops import decode_ffn, ffn, project
from cupy_kernels.tiles import TileTable

HIDDEN, INTERMEDIATE, ROWS = 256, 512, (64, 192)


class NothingLaunched:
    """Takes what a launch takes on Hopper, and launches nothing."""

    def capability(self, device: torch.device) -> tuple[int, int]:
        return 9, 0

    def multiprocessors(self, device: torch.device) -> int:
        return 132

    def tensor_map(self, matrix: Tensor, box_rows: int) -> bytes:
        return bytes(TENSOR_MAP_BYTES)

    def __call__(
        self, name: str, grid: Sequence[int], threads: int, shared: int, device: torch.device, args: Sequence[Argument]
    ) -> None:
        pass


def calls(device: torch.device) -> dict[str, Callable[[], Any]]:
    """Operators in bf16, at toy size."""

    def matrix(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).bfloat16()

    D, F = HIDDEN, INTERMEDIATE
    experts = [(matrix(F, D), matrix(F, D), matrix(D, F)) for _ in range(2)]
    table = TileTable.sorted(ROWS, device)
    x, residual, one, norm = matrix(sum(ROWS), D), matrix(sum(ROWS), D), matrix(1, D), matrix(D)
    first, second, out = matrix(D, D), matrix(D, D), matrix(sum(ROWS), D)
    return {
        "ffn": lambda: ffn(x, residual, experts, table),
        "project": lambda: project(x, (first, second), table),
        "decode_ffn, one token": lambda: decode_ffn(one, one, (norm, norm), experts, 0, 1e-5),
        "for scale: torch.mm into a tensor": lambda: torch.mm(x, first, out=out),
    }


def microseconds(call: Callable[[], Any], device: torch.device, count: int = 200, rounds: int = 15) -> float:
    """Median over rounds of the time to queue a call."""
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(count):
            call()
        found.append((time.perf_counter() - begun) / count * 1e6)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return statistics.median(found)


@torch.no_grad()
def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args(words)
    host = torch.device("cpu")
    print("nothing launched, us a call:")
    with launch.on_host(NothingLaunched()):
        for name, call in list(calls(host).items())[:-1]:
            print(f"  {microseconds(call, host, rounds=args.rounds):7.1f}  {name}")
    if launch.why_not() is not None:
        return
    device = torch.device("cuda", 0)
    print(f"launched on {torch.cuda.get_device_name(0)}, us a call:")
    profile = cProfile.Profile()
    for name, call in calls(device).items():
        call()  # compiles
        print(f"  {microseconds(call, device, rounds=args.rounds):7.1f}  {name}")
        if name == "ffn":
            profile.runcall(microseconds, call, device, rounds=5)
    pstats.Stats(profile).sort_stats("tottime").print_stats(20)


if __name__ == "__main__":
    main()
