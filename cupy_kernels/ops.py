"""The operators, registered with torch: fake tensors, autograd, torch.compile(fullgraph=True), CUDA graphs.

    ffn         y = (residual +) down(silu(gate x) * up x), each row by its expert
    project     y = x w^T (+ bias), each row by its expert: q, k, v, o
    decode_ffn  a decoding step: x + delta, RMSNorm, FFN and residual for 1 to 8 tokens

bf16 on a CUDA device runs the kernels, with fp32 accumulation. fp32, and CPUs, run the torch reference (reference.py).
fp16 is refused. Weights are those of two experts; `table` says which row belongs to which.

T rows, D hidden, F intermediate, K depth and N columns of a projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake

from cupy_kernels import flops, kernels, reference
from cupy_kernels.errors import KernelError
from cupy_kernels.launch import Launcher, launcher_for
from cupy_kernels.reference import of_expert
from cupy_kernels.tiles import NUM_EXPERTS, TileTable

WEIGHTS = ("gate0", "up0", "down0", "gate1", "up1", "down1")

_library = Library("cupy_kernels", "DEF")
_WEIGHTS = ", ".join(f"Tensor {name}" for name in WEIGHTS)
_library.define(
    f"ffn(Tensor x, Tensor? residual, {_WEIGHTS}, Tensor tiles, SymInt[] spans, bool keep) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    f"ffn_backward(Tensor dy, Tensor x, {_WEIGHTS}, Tensor g, Tensor u, Tensor tiles, SymInt[] spans, bool[] wanted)"
    " -> Tensor[]"
)
_library.define(
    "project(Tensor x, Tensor w0, Tensor w1, Tensor? bias0, Tensor? bias1, Tensor tiles, SymInt[] spans) -> Tensor"
)
_library.define(
    "project_backward(Tensor dy, Tensor x, Tensor w0, Tensor w1, SymInt[] spans, bool[] wanted) -> Tensor[]"
)
_library.define(
    f"decode_ffn(Tensor x, Tensor? delta, Tensor norm0, Tensor norm1, {_WEIGHTS}, SymInt first, float eps) -> Tensor"
)


def ffn(
    x: Tensor,
    residual: Tensor | None,
    experts: Sequence[tuple[Tensor, Tensor, Tensor]],
    table: TileTable,
    recompute: bool = False,
) -> Tensor:
    """Gate, up and SwiGLU of both experts in one launch; down and residual in a second.

    Backward: one launch gives the gradients of gate and up from dy (the SwiGLU's derivative in the epilogue of the down
    projection's input gradient); the weights' are one cuBLAS product for each expert, none for a frozen expert.

    Args:
        x: [T, D].
        residual: [T, D], added to the result; or None.
        experts: (gate [F, D], up [F, D], down [D, F]) of the two.
        table: Rows -> experts.
        recompute: Keep nothing of size [T, F] for the backward, which computes the two products again.

    Returns:
        [T, D].

    Raises:
        KernelError: a tensor that the kernels cannot take; says which and why.
    """
    _check_experts(experts)
    _check_rows(x, table)
    keep = not recompute and torch.is_grad_enabled()
    run: Any = torch.ops.cupy_kernels.ffn if _watched() else _ffn_and_kept
    return run(x, residual, *experts[0], *experts[1], table.tiles, table.spans, keep)[0]


def project(
    x: Tensor,
    weights: Sequence[Tensor],
    table: TileTable,
    biases: Sequence[Tensor | None] = (None, None),
) -> Tensor:
    """A linear layer of both experts in one launch.

    Args:
        x: [T, K].
        weights: [N, K] of the two.
        table: Rows -> experts.
        biases: [N] of the two, or None.

    Returns:
        [T, N].

    Raises:
        KernelError: a tensor that the kernels cannot take; says which and why.
    """
    _check_experts(weights)
    _check_rows(x, table)
    run: Any = torch.ops.cupy_kernels.project if _watched() else _project
    return run(x, *weights, *biases, table.tiles, table.spans)


def decode_ffn(
    x: Tensor,
    delta: Tensor | None,
    norms: Sequence[Tensor],
    experts: Sequence[tuple[Tensor, Tensor, Tensor]],
    first: int,
    eps: float,
) -> Tensor:
    """With s = x + delta: s + FFN(RMSNorm(s)). Two launches for what is eight of a plain step. Has no backward.

    Args:
        x: [T, D], T of 1 to 8: the residual stream.
        delta: [T, D], what attention adds to it; or None.
        norms: Weights [D] of the RMSNorm of the two experts; may be the same tensor.
        experts: (gate [F, D], up [F, D], down [D, F]) of the two.
        first: So many tokens belong to expert 0, the others to expert 1.
        eps: Of the RMSNorm.

    Returns:
        [T, D].
    """
    _check_experts(experts)
    run: Any = torch.ops.cupy_kernels.decode_ffn if _watched() else _decode_ffn
    return run(x, delta, *norms, *experts[0], *experts[1], first, eps)


def _watched() -> bool:
    """Whether a call must go through torch's dispatcher: for gradients, a compiler, or a mode that sees every operator
    (fake tensors, a count of FLOPs). It takes longer than launching the kernel, so plain inference goes around it."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def _check_experts(experts: Sequence[Any]) -> None:
    if len(experts) != NUM_EXPERTS:
        raise KernelError(f"cupy_kernels: the kernels run {NUM_EXPERTS} experts, {len(experts)} given")


def _check_rows(x: Tensor, table: TileTable) -> None:
    if x.shape[0] != table.rows:
        raise KernelError(f"cupy_kernels: x has {x.shape[0]} rows, the table covers {table.rows}")


def _launcher(x: Tensor) -> Launcher | None:
    """What runs the kernels for this tensor; None: the torch reference does."""
    if x.dtype == torch.float16:
        raise KernelError("cupy_kernels: x is float16, which overflows in this model family; use bfloat16 or float32")
    return launcher_for(x.device) if x.dtype == torch.bfloat16 else None


# ---- ffn ------------------------------------------------------------------------------------------------------------


def _ffn_and_kept(
    x: Tensor,
    residual: Tensor | None,
    gate0: Tensor,
    up0: Tensor,
    down0: Tensor,
    gate1: Tensor,
    up1: Tensor,
    down1: Tensor,
    tiles: Tensor,
    spans: Sequence[int],
    keep: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The result, and where they are to be kept the products with gate and up."""
    gates, ups, downs = (gate0, gate1), (up0, up1), (down0, down1)
    run = _launcher(x)
    if run is None:
        h, g, u = reference.gate_up(x, gates, ups, spans)
        y = reference.project(h, downs, (None, None), residual, spans)
    else:
        h, g, u = kernels.gate_up(run, x, gates, ups, tiles, keep)
        y = kernels.project(run, h, downs, (None, None), residual, tiles)
    return (y, g, u) if keep else (y, None, None)


def _ffn(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    y, *kept = _ffn_and_kept(*args)
    g, u = (y.new_empty(0, args[2].shape[0]) if t is None else t for t in kept)  # an operator returns tensors
    return y, g, u


def _ffn_fake(x, residual, gate0, up0, down0, gate1, up1, down1, tiles, spans, keep):
    rows = x.shape[0] if keep else 0
    return torch.empty_like(x), x.new_empty(rows, gate0.shape[0]), x.new_empty(rows, gate0.shape[0])


def _ffn_backward(
    dy: Tensor,
    x: Tensor,
    gate0: Tensor,
    up0: Tensor,
    down0: Tensor,
    gate1: Tensor,
    up1: Tensor,
    down1: Tensor,
    g: Tensor,
    u: Tensor,
    tiles: Tensor,
    spans: Sequence[int],
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Gradients of x and of those of the six weights that are wanted, in that order."""
    gates, ups, downs = (gate0, gate1), (up0, up1), (down0, down1)
    run = _launcher(x)
    dy = dy.contiguous()
    if g.shape[0] != x.shape[0]:  # nothing was kept
        if run is None:
            _, g, u = reference.gate_up(x, gates, ups, spans)
        else:
            _, kept_g, kept_u = kernels.gate_up(run, x, gates, ups, tiles, keep=True)
            assert kept_g is not None and kept_u is not None
            g, u = kept_g, kept_u
    if run is None:
        dg, du, h = reference.swiglu_backward(dy, downs, g, u, spans)
    else:
        dg, du, h = kernels.swiglu_backward(run, dy, downs, g, u, tiles)
    of_weight = {"gate": (dg, x), "up": (du, x), "down": (dy, h)}
    grads = []
    if wanted[0]:
        dx = torch.empty_like(x)
        for expert, first, end in reference.triples(spans):
            torch.matmul(dg[first:end], gates[expert], out=dx[first:end])
            dx[first:end].addmm_(du[first:end], ups[expert])
        grads.append(dx)
    for name, want in zip(WEIGHTS, wanted[1:], strict=True):
        if want:
            grads.append(_weight_gradient(*of_weight[name[:-1]], spans, int(name[-1])))
    return grads


def _weight_gradient(dy: Tensor, x: Tensor, spans: Sequence[int], expert: int) -> Tensor:
    """dy^T x over the rows of one expert; zeros, not nothing, where it has none."""
    return of_expert(dy, spans, expert).T @ of_expert(x, spans, expert)


def _ffn_backward_fake(dy, x, gate0, up0, down0, gate1, up1, down1, g, u, tiles, spans, wanted):
    like = (x, gate0, up0, down0, gate1, up1, down1)
    return [torch.empty_like(t) for t, want in zip(like, wanted, strict=True) if want]


def _ffn_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, residual, *weights, tiles, spans, _ = inputs
    _, g, u = output
    ctx.mark_non_differentiable(g, u)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *weights, g, u, tiles)
    ctx.spans, ctx.has_residual = spans, residual is not None


def _ffn_autograd(ctx: Any, dy: Tensor | None, *_: Any) -> tuple:
    wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:8]]
    if dy is None:
        return (None,) * 11
    x, gate0, up0, down0, gate1, up1, down1, g, u, tiles = ctx.saved_tensors
    weights = (gate0, up0, down0, gate1, up1, down1)
    given = iter(torch.ops.cupy_kernels.ffn_backward(dy, x, *weights, g, u, tiles, ctx.spans, wanted))
    dx, *dw = [next(given) if want else None for want in wanted]
    return dx, dy if ctx.needs_input_grad[1] else None, *dw, None, None, None


# ---- project --------------------------------------------------------------------------------------------------------


def _project(
    x: Tensor,
    w0: Tensor,
    w1: Tensor,
    bias0: Tensor | None,
    bias1: Tensor | None,
    tiles: Tensor,
    spans: Sequence[int],
) -> Tensor:
    run = _launcher(x)
    if run is None:
        return reference.project(x, (w0, w1), (bias0, bias1), None, spans)
    return kernels.project(run, x, (w0, w1), (bias0, bias1), None, tiles)


def _project_fake(x, w0, w1, bias0, bias1, tiles, spans):
    return x.new_empty(x.shape[0], w0.shape[0])


def _project_backward(
    dy: Tensor, x: Tensor, w0: Tensor, w1: Tensor, spans: Sequence[int], wanted: Sequence[bool]
) -> list[Tensor]:
    """Gradients of x, the weights and the biases that are wanted, in that order: cuBLAS, which a kernel cannot beat."""
    dy = dy.contiguous()
    grads = []
    if wanted[0]:
        dx = torch.empty_like(x)
        for expert, first, end in reference.triples(spans):
            torch.matmul(dy[first:end], (w0, w1)[expert], out=dx[first:end])
        grads.append(dx)
    for expert in (0, 1):
        if wanted[1 + expert]:
            grads.append(_weight_gradient(dy, x, spans, expert))
    for expert in (0, 1):
        if wanted[3 + expert]:
            grads.append(of_expert(dy, spans, expert).sum(0))
    return grads


def _project_backward_fake(dy, x, w0, w1, spans, wanted):
    like = (x, w0, w1, x.new_empty(w0.shape[0]), x.new_empty(w0.shape[0]))
    return [torch.empty_like(t) for t, want in zip(like, wanted, strict=True) if want]


def _project_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, w0, w1, _, _, _, spans = inputs
    ctx.save_for_backward(x, w0, w1)
    ctx.spans = spans


def _project_autograd(ctx: Any, dy: Tensor) -> tuple:
    wanted = list(ctx.needs_input_grad[:5])
    given = iter(torch.ops.cupy_kernels.project_backward(dy, *ctx.saved_tensors, ctx.spans, wanted))
    return *(next(given) if want else None for want in wanted), None, None


# ---- decode_ffn -----------------------------------------------------------------------------------------------------


def _decode_ffn(
    x: Tensor,
    delta: Tensor | None,
    norm0: Tensor,
    norm1: Tensor,
    gate0: Tensor,
    up0: Tensor,
    down0: Tensor,
    gate1: Tensor,
    up1: Tensor,
    down1: Tensor,
    first: int,
    eps: float,
) -> Tensor:
    norms, gates, ups, downs = (norm0, norm1), (gate0, gate1), (up0, up1), (down0, down1)
    run = _launcher(x)
    if run is None:
        return reference.decode_ffn(x, delta, norms, gates, ups, downs, first, eps)
    return kernels.decode_ffn(run, x, delta, norms, gates, ups, downs, first, eps)


def _decode_ffn_fake(x, delta, norm0, norm1, gate0, up0, down0, gate1, up1, down1, first, eps):
    return torch.empty_like(x)


for _name, _run, _fake in (
    ("ffn", _ffn, _ffn_fake),
    ("ffn_backward", _ffn_backward, _ffn_backward_fake),
    ("project", _project, _project_fake),
    ("project_backward", _project_backward, _project_backward_fake),
    ("decode_ffn", _decode_ffn, _decode_ffn_fake),
):
    _library.impl(_name, _run, "CPU")
    _library.impl(_name, _run, "CUDA")
    register_fake(f"cupy_kernels::{_name}", _fake, lib=_library)
register_autograd("cupy_kernels::ffn", _ffn_autograd, setup_context=_ffn_setup, lib=_library)
register_autograd("cupy_kernels::project", _project_autograd, setup_context=_project_setup, lib=_library)
flops.register()
