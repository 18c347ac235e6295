"""Which kernel runs an operator, on which grid: from tensors to launches.

T rows of the batch, D hidden, F intermediate, K depth and N columns of a product.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from cupy_kernels.errors import KernelError
from cupy_kernels.launch import GATE_UP_COLUMNS, PROJECT_COLUMNS, Argument, Launcher
from cupy_kernels.reference import Pair
from cupy_kernels.tiles import TILE_ROWS

MAX_DECODE_TOKENS = 8
WIDTHS = 8
"""Rows of a matrix start at 16 bytes: widths are multiples of 8 bf16."""

SM80_THREADS, SM80_COLUMNS = 256, 128
SM80_SHARED = 4 * (128 + 128) * 40 * 2  # stages x rows of A and B x (32 deep + 8) x bf16
SM90_THREADS, SM90_DEPTH = 384, 64
DECODE_THREADS, DOWN_THREADS = 256, 128


def check(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """
    Raises:
        KernelError: not of that shape, not bf16, not contiguous, not on the device of `like`, or not at 16 bytes.
    """
    wrong = None
    if tensor.shape != shape:
        wrong = f"has shape {list(tensor.shape)}, wanted {list(shape)}"
    elif tensor.dtype != torch.bfloat16:
        wrong = f"is {str(tensor.dtype).removeprefix('torch.')}; the kernels compute bfloat16"
    elif tensor.device != like.device:
        wrong = f"is on {tensor.device}, x is on {like.device}"
    elif not tensor.is_contiguous():
        wrong = f"is not contiguous (strides {list(tensor.stride())}); call .contiguous()"
    elif tensor.data_ptr() % 16:
        wrong = f"starts {tensor.data_ptr() % 16} bytes past a multiple of 16; clone() it"
    elif shape[-1] % WIDTHS:
        wrong = f"has rows of {shape[-1]}; they must be multiples of {WIDTHS}"
    if wrong:
        raise KernelError(f"cupy_kernels: {name} {wrong}")


def check_tiles(tiles: Tensor, like: Tensor) -> None:
    """Raises a KernelError unless this is a tile table on the device of `like`."""
    if tiles.dtype != torch.int32 or tiles.dim() != 2 or tiles.shape[1] != 4 or tiles.device != like.device:
        raise KernelError(
            f"cupy_kernels: tiles is {tiles.dtype} {list(tiles.shape)} on {tiles.device}; "
            f"wanted int32 [m, 4] on {like.device}: TileTable.make(...).tiles"
        )


def uses_tma(run: Launcher, device: torch.device) -> bool:
    """Hopper alone has wgmma; every other device from sm_80 on takes the mma.sync kernels."""
    return run.capability(device)[0] == 9


def sm90_shared(columns: int) -> int:
    """Bytes of shared memory of a block whose tiles have so many columns: `Pipeline`."""
    stage = (TILE_ROWS + columns) * SM90_DEPTH * 2 + 2 * 8  # A, B and two barriers
    return min(8, (226 << 10) // stage) * stage


@functools.cache
def tile_columns(multiprocessors: int, row_tiles: int, columns: int, widths: tuple[int, ...]) -> int:
    """The width of tiles with which the last multiprocessor is done first: rounds x the time of a tile.

    That time grows with the width and what goes along with any: on an H100 as width + 64, in full rounds and in single
    ones (2048 x 8192 and 2048 x 2048 at 320 to 4096 rows, all widths).
    """

    def cost(width: int) -> int:
        return -(-row_tiles * -(-columns // width) // multiprocessors) * (width + 64)

    return min(widths, key=cost)


def _on_hopper(run: Launcher, name: str, x: Tensor, columns: int, tiles: int, args: Sequence[Argument]) -> None:
    """Persistent blocks, no more than have a tile."""
    blocks = min(run.multiprocessors(x.device), tiles)
    run(name, (blocks,), SM90_THREADS, sm90_shared(columns), x.device, args)


def gate_up(
    run: Launcher, x: Tensor, gates: Pair, ups: Pair, tiles: Tensor, keep: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """h [T, F] = silu(x gate^T) * (x up^T), and the two products where they are to be kept. One launch."""
    (T, K), N = x.shape, gates[0].shape[0]
    check("x", x, (T, K), x)
    for name, weight in zip(("gate0", "gate1", "up0", "up1"), (*gates, *ups), strict=True):
        check(name, weight, (N, K), x)
    check_tiles(tiles, x)
    h = x.new_empty(T, N)
    g, u = (x.new_empty(T, N), x.new_empty(T, N)) if keep else (None, None)
    if N % WIDTHS:
        raise KernelError(f"cupy_kernels: gate0 has {N} rows; they must be multiples of {WIDTHS}")
    if not T:
        return h, g, u
    if uses_tma(run, x.device):
        maps = [run.tensor_map(x, TILE_ROWS)]
        columns = tile_columns(run.multiprocessors(x.device), tiles.shape[0], 2 * N, GATE_UP_COLUMNS)
        maps += [run.tensor_map(w, columns // 2) for w in (gates[0], ups[0], gates[1], ups[1])]
        args = (*maps, h, g, u, tiles, tiles.shape[0], K, N)
        _on_hopper(run, f"gate_up_sm90_{columns}", x, columns, tiles.shape[0] * -(-2 * N // columns), args)
    else:
        grid = (tiles.shape[0], -(-N // (SM80_COLUMNS // 2)))
        args = (x, gates[0], ups[0], gates[1], ups[1], h, g, u, tiles, K, N)
        run("gate_up_sm80", grid, SM80_THREADS, SM80_SHARED, x.device, args)
    return h, g, u


def project(
    run: Launcher,
    x: Tensor,
    weights: Pair,
    biases: tuple[Tensor | None, Tensor | None],
    residual: Tensor | None,
    tiles: Tensor,
) -> Tensor:
    """y [T, N] = x w^T (+ bias) (+ residual). One launch."""
    (T, K), N = x.shape, weights[0].shape[0]
    check("x", x, (T, K), x)
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        check(f"w{number}", weight, (N, K), x)
        if bias is not None:
            check(f"bias{number}", bias, (N,), x)
    if residual is not None:
        check("residual", residual, (T, N), x)
    check_tiles(tiles, x)
    if N % WIDTHS:
        raise KernelError(f"cupy_kernels: w0 has {N} rows; they must be multiples of {WIDTHS}")
    y = x.new_empty(T, N)
    if not T:
        return y
    if uses_tma(run, x.device):
        columns = tile_columns(run.multiprocessors(x.device), tiles.shape[0], N, PROJECT_COLUMNS)
        maps = (run.tensor_map(x, TILE_ROWS), *(run.tensor_map(w, columns) for w in weights))
        args = (*maps, *biases, residual, y, tiles, tiles.shape[0], K, N)
        _on_hopper(run, f"project_sm90_{columns}", x, columns, tiles.shape[0] * -(-N // columns), args)
    else:
        args = (x, *weights, *biases, residual, y, tiles, K, N)
        run("project_sm80", (tiles.shape[0], -(-N // SM80_COLUMNS)), SM80_THREADS, SM80_SHARED, x.device, args)
    return y


def swiglu_backward(
    run: Launcher, dy: Tensor, downs: Pair, g: Tensor, u: Tensor, tiles: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dy [T, D] -> dg, du [T, F], and h [T, F] anew: the down projection's input gradient and SwiGLU's, one launch."""
    (T, K), N = dy.shape, g.shape[1]
    check("dy", dy, (T, K), dy)
    for name, tensor, shape in (
        ("down0", downs[0], (K, N)),
        ("down1", downs[1], (K, N)),
        ("g", g, (T, N)),
        ("u", u, (T, N)),
    ):
        check(name, tensor, shape, dy)
    check_tiles(tiles, dy)
    dg, du, h = torch.empty_like(g), torch.empty_like(g), torch.empty_like(g)
    if not T:
        return dg, du, h
    if uses_tma(run, dy.device):
        maps = (run.tensor_map(dy, TILE_ROWS), *(run.tensor_map(w, 64) for w in downs))
        args = (*maps, g, u, dg, du, h, tiles, tiles.shape[0], K, N)
        _on_hopper(run, "swiglu_backward_sm90", dy, 256, tiles.shape[0] * -(-N // 256), args)
    else:
        args = (dy, *downs, g, u, dg, du, h, tiles, K, N)
        run("swiglu_backward_sm80", (tiles.shape[0], -(-N // SM80_COLUMNS)), SM80_THREADS, SM80_SHARED, dy.device, args)
    return dg, du, h


def decode_ffn(
    run: Launcher,
    x: Tensor,
    delta: Tensor | None,
    norms: Pair,
    gates: Pair,
    ups: Pair,
    downs: Pair,
    first: int,
    eps: float,
) -> Tensor:
    """s = x (+ delta); s + down(SwiGLU(RMSNorm(s))) for 1 to 8 tokens: two launches, every weight read once."""
    (T, D), N = x.shape, gates[0].shape[0]
    if not 1 <= T <= MAX_DECODE_TOKENS or not 0 <= first <= T:
        raise KernelError(
            f"cupy_kernels: decode_ffn takes 1 to {MAX_DECODE_TOKENS} tokens, first of 0 to all; got {T} and {first}"
        )
    check("x", x, (T, D), x)
    if delta is not None:
        check("delta", delta, (T, D), x)
    for number in (0, 1):
        check(f"norm{number}", norms[number], (D,), x)
        check(f"gate{number}", gates[number], (N, D), x)
        check(f"up{number}", ups[number], (N, D), x)
        check(f"down{number}", downs[number], (D, N), x)
    h, y = x.new_empty(T, N), torch.empty_like(x)
    total = x if delta is None else torch.empty_like(x)
    warps = DECODE_THREADS // 32
    if T == 1:
        expert = int(first == 0)
        blocks = min(-(-N // warps), 2 * run.multiprocessors(x.device))
        args = (x, delta, total, norms[expert], gates[expert], ups[expert], h, D, N, float(eps))
        run("decode_gate_up_one", (blocks,), DECODE_THREADS, D * 2 + warps * 4, x.device, args)
        run("decode_down_one", (D,), DOWN_THREADS, DOWN_THREADS // 32 * 4, x.device, (h, downs[expert], total, y, N, D))
        return y
    blocks = min(-(-N // (warps * 8)), run.multiprocessors(x.device))
    pitch = -(-D // 64) * 64 + 32  # lanes that read eight tokens at once then meet no bank twice
    args = (x, delta, total, *norms, gates[0], ups[0], gates[1], ups[1], h, first, T, D, N, pitch, float(eps))
    run("decode_gate_up_few", (blocks,), DECODE_THREADS, T * pitch * 2 + warps * 4, x.device, args)
    args = (h, *downs, total, y, first, T, N, D)
    run("decode_down_few", (-(-D // 16),), DECODE_THREADS, warps * 16 * MAX_DECODE_TOKENS * 4, x.device, args)
    return y
