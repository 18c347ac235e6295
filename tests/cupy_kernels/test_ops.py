"""The operators as torch sees them: schema, fake tensors, autograd, compilation; by the reference and the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cupy_kernels import launch, ops
from cupy_kernels.errors import KernelError
from cupy_kernels.ops import decode_ffn, ffn, project
from cupy_kernels.tiles import TileTable
from tests.cupy_kernels.cases import SHAPES, Shape, matrix
from tests.cupy_kernels.emulated import Emulator

RUNNERS = {"reference": None, "sm_80": (8, 0), "sm_90a": (9, 0)}
RAGGED = SHAPES["text_image_text"]
CHECKED = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.fixture(params=RUNNERS)
def runner(request: pytest.FixtureRequest) -> Iterator[Emulator | None]:
    """Each operator by the torch reference, and by both families of kernels in the emulator."""
    capability = RUNNERS[request.param]
    if capability is None:
        yield None
        return
    emulator = Emulator(capability)
    with launch.on_host(emulator):
        yield emulator


def experts(shape: Shape, dtype: torch.dtype = torch.bfloat16) -> list[list[Tensor]]:
    D, F = shape.hidden, shape.intermediate
    shapes = ((F, D), (F, D), (D, F))
    return [[matrix(*s, "cpu").to(dtype).requires_grad_() for s in shapes] for _ in range(2)]


def rows(shape: Shape, width: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape.rows, width).to(torch.bfloat16).to(dtype).requires_grad_()


def plain_ffn(x: Tensor, residual: Tensor | None, weights: list[list[Tensor]], table: TileTable) -> Tensor:
    """By autograd's own rules, span by span."""
    pieces = []
    for i in range(0, len(table.spans), 3):
        expert, first, end = table.spans[i : i + 3]
        gate, up, down = weights[expert]
        piece = x[first:end]
        pieces.append((torch.nn.functional.silu(piece @ gate.T) * (piece @ up.T)) @ down.T)
    y = torch.cat(pieces)
    return y if residual is None else y + residual


def gradients(y: Tensor, dy: Tensor, leaves: list[Tensor], oracle: bool = False) -> list[Tensor]:
    """Of every leaf; the operators give zeros where an expert has no rows, only the oracle may leave it out."""
    grads = torch.autograd.grad(y, leaves, dy.to(y.dtype), allow_unused=oracle, materialize_grads=oracle)
    return [g.double() for g in grads]


def close(got: Tensor, want: Tensor, tolerance: float = 1.2e-2) -> bool:
    """A few roundings to bf16 in a row; zeros stay zeros."""
    return bool((got.double() - want.double()).norm() <= tolerance * want.double().norm())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("recompute", [False, True])
def test_ffn_and_its_gradients_agree_with_autograd_in_float64(
    name: str, recompute: bool, runner: Emulator | None
) -> None:
    shape = SHAPES[name]
    table = shape.table("cpu")
    x, residual, weights = rows(shape, shape.hidden), rows(shape, shape.hidden), experts(shape)
    leaves = [x, residual, *weights[0], *weights[1]]
    y = ffn(x, residual, weights, table, recompute)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    want = plain_ffn(wide[0], wide[1], [wide[2:5], wide[5:8]], table)
    assert close(y, want)
    dy = torch.randn(shape.rows, shape.hidden).bfloat16()
    pairs = zip(gradients(y, dy, leaves), gradients(want, dy, wide, oracle=True), strict=True)
    for number, (got, expected) in enumerate(pairs):
        assert close(got, expected), number
    if runner is not None:
        assert [n.partition("_sm")[0] for n in runner.launched] == [
            "gate_up",
            "project",
            *(["gate_up"] if recompute else []),
            "swiglu_backward",
        ]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_project_and_its_gradients_agree_with_autograd_in_float64(
    name: str, with_bias: bool, runner: Emulator | None
) -> None:
    shape = SHAPES[name]
    table = shape.table("cpu")
    x = rows(shape, shape.hidden)
    weights = [matrix(shape.intermediate, shape.hidden, "cpu").requires_grad_() for _ in range(2)]
    biases = [torch.randn(shape.intermediate).bfloat16().requires_grad_() for _ in range(2)] if with_bias else []
    leaves = [x, *weights, *biases]
    y = project(x, weights, table, biases or (None, None))
    wide = [t.detach().double().requires_grad_() for t in leaves]
    pieces = []
    for i in range(0, len(table.spans), 3):
        expert, first, end = table.spans[i : i + 3]
        pieces.append(wide[0][first:end] @ wide[1 + expert].T + (wide[3 + expert] if with_bias else 0))
    want = torch.cat(pieces)
    assert close(y, want)
    dy = torch.randn(shape.rows, shape.intermediate).bfloat16()
    pairs = zip(gradients(y, dy, leaves), gradients(want, dy, wide, oracle=True), strict=True)
    for number, (got, expected) in enumerate(pairs):
        assert close(got, expected), number


def test_fp32_gradients_are_those_of_gradcheck() -> None:
    shape = Shape(((0, 3), (1, 4), (0, 2)), 8, 16)
    table = shape.table("cpu")
    inputs = [torch.randn(9, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    inputs += [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((16, 8), (16, 8), (8, 16)) * 2]
    for recompute in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, r, *w, again=recompute: ffn(x, r, [w[:3], w[3:]], table, again), inputs, atol=1e-5
        )


@pytest.mark.parametrize("frozen", ["expert_0", "expert_1", "x", "all_but_one"])
def test_what_is_frozen_gets_no_gradient_and_costs_none(frozen: str) -> None:
    shape = RAGGED
    x, weights = rows(shape, shape.hidden), experts(shape)
    still = {"expert_0": weights[0], "expert_1": weights[1], "x": [x], "all_but_one": [x, *weights[0], *weights[1][1:]]}
    for tensor in still[frozen]:
        tensor.requires_grad_(False)
    made: list[int] = []
    plain = ops._weight_gradient
    ops._weight_gradient = lambda dy, x, spans, expert: made.append(expert) or plain(dy, x, spans, expert)
    try:
        ffn(x, None, weights, shape.table("cpu")).sum().backward()
    finally:
        ops._weight_gradient = plain
    for tensor in (x, *weights[0], *weights[1]):
        assert (tensor.grad is None) == (not tensor.requires_grad)
    assert (
        sorted(made)
        == {"expert_0": [1, 1, 1], "expert_1": [0, 0, 0], "x": [0, 0, 0, 1, 1, 1], "all_but_one": [1]}[frozen]
    )


def test_an_expert_without_rows_has_zero_gradients_not_none() -> None:
    shape = SHAPES["expert_0_alone"]
    weights = experts(shape)
    ffn(rows(shape, shape.hidden), None, weights, shape.table("cpu")).sum().backward()
    assert all(w.grad is not None and not w.grad.any() for w in weights[1])
    assert all(w.grad is not None and w.grad.any() for w in weights[0])


def test_recomputing_keeps_nothing_as_wide_as_the_ffn() -> None:
    shape = RAGGED
    x, weights, kept = rows(shape, shape.hidden), experts(shape), []
    for recompute in (False, True):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            ffn(x, None, weights, shape.table("cpu"), recompute)
        kept.append(sum(sizes))
    assert kept[0] - kept[1] == 2 * shape.rows * shape.intermediate


def test_inference_goes_around_the_dispatcher_unless_something_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal bits either way; what counts operations still sees each of them."""
    x, weights, table = rows(RAGGED, RAGGED.hidden), experts(RAGGED), RAGGED.table("cpu")
    norm = torch.ones(RAGGED.hidden).bfloat16()
    calls = {
        "ffn": lambda: ffn(x, x, weights, table),
        "project": lambda: project(x, [w[0] for w in weights], table),
        "decode_ffn": lambda: decode_ffn(x[:3], None, (norm, norm), weights, 2, 1e-5),
    }
    dispatched = {name: call() for name, call in calls.items()}
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            watched = {name: call() for name, call in calls.items()}
        assert set(calls) <= {str(op).removeprefix("cupy_kernels.") for op in counter.flop_counts["Global"]}
        monkeypatch.setattr(torch.ops, "cupy_kernels", None)
        for name, call in calls.items():
            assert torch.equal(call(), dispatched[name]) and torch.equal(watched[name], dispatched[name])


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(grad: bool, runner: Emulator | None) -> None:
    shape = RAGGED
    table, weights = shape.table("cpu"), [w for e in experts(shape) for w in e]
    x, residual = rows(shape, shape.hidden), rows(shape, shape.hidden)
    if not grad:
        for tensor in (x, residual, *weights):
            tensor.requires_grad_(False)
    tests = CHECKED if grad or runner is None else CHECKED[:3]
    for added in (residual, None):
        args = (x, added, *weights, table.tiles, table.spans, grad)
        torch.library.opcheck(torch.ops.cupy_kernels.ffn.default, args, test_utils=tests, atol=3e-2, rtol=3e-2)
    args = (x, weights[0], weights[3], None, None, table.tiles, table.spans)
    torch.library.opcheck(torch.ops.cupy_kernels.project.default, args, test_utils=tests, atol=3e-2, rtol=3e-2)
    norm = torch.rand(shape.hidden).bfloat16()
    args = (x[:5].detach(), None, norm, norm, *[w.detach() for w in weights], 2, 1e-5)
    torch.library.opcheck(torch.ops.cupy_kernels.decode_ffn.default, args, test_utils=CHECKED[:3], atol=3e-2, rtol=3e-2)


def test_compiles_as_one_graph_forward_and_backward(runner: Emulator | None) -> None:
    shape = RAGGED
    table, weights, x = shape.table("cpu"), experts(shape), rows(shape, shape.hidden)
    q = [matrix(shape.hidden, shape.hidden, "cpu").requires_grad_() for _ in range(2)]

    def block(x: Tensor) -> Tensor:
        return ffn(project(x, q, table), x, weights, table).float().square().sum()

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    leaves = [x, *q, *weights[0], *weights[1]]
    want, got = torch.autograd.grad(block(x), leaves), torch.autograd.grad(compiled(x), leaves)
    for a, b in zip(got, want, strict=True):
        assert close(a, b, 2e-2)


def test_decoding_compiles_as_one_graph(runner: Emulator | None) -> None:
    shape = RAGGED
    weights, norm = [[w.detach() for w in e] for e in experts(shape)], torch.rand(shape.hidden).bfloat16()
    x = torch.randn(2, shape.hidden).bfloat16()

    def step(x: Tensor, delta: Tensor) -> Tensor:
        return decode_ffn(x, delta, (norm, norm), weights, 1, 1e-5)

    got = torch.compile(step, backend="aot_eager", fullgraph=True)(x, x / 2)
    assert close(got, step(x, x / 2))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a.update(x=a["x"].half()), "x is float16, which overflows"),
        (lambda a: a.update(x=a["x"].T.contiguous().T), r"x is not contiguous \(strides \[1, 183\]\)"),
        (lambda a: a["weights"][1].__setitem__(0, a["weights"][1][0].float()), "gate1 is float32; the kernels compute"),
        (lambda a: a["weights"][0].__setitem__(1, a["weights"][0][1][:, :32]), r"up0 has shape \[200, 32\], wanted"),
        (lambda a: a["weights"].pop(), "run 2 experts, 1 given"),
        (lambda a: a.update(x=a["x"][:-1]), "x has 182 rows, the table covers 183"),
        (lambda a: a.update(residual=a["x"].new_zeros(183, 72)), r"residual has shape \[183, 72\], wanted \[183, 64\]"),
        (
            lambda a: a.update(x=a["x"].new_zeros(183 * 64 + 1)[1:].view(183, 64)),
            "x starts 2 bytes past a multiple of 16",
        ),
    ],
)
def test_a_wrong_argument_is_named(change: Any, says: str) -> None:
    shape = RAGGED
    args = {"x": rows(shape, shape.hidden).detach(), "residual": None, "weights": experts(shape)}
    args["weights"] = [[w.detach() for w in e] for e in args["weights"]]
    change(args)
    with launch.on_host(Emulator()), pytest.raises(KernelError, match=says):
        ffn(args["x"], args["residual"], args["weights"], shape.table("cpu"))


def test_widths_that_are_no_multiple_of_8_are_named() -> None:
    table = TileTable.sorted((2, 3), "cpu")
    x, odd = torch.zeros(5, 12).bfloat16(), torch.zeros(12, 16).bfloat16()
    with launch.on_host(Emulator()):
        with pytest.raises(KernelError, match="x has rows of 12; they must be multiples of 8"):
            project(x, (torch.zeros(8, 12).bfloat16(),) * 2, table)
        with pytest.raises(KernelError, match="w0 has 12 rows; they must be multiples of 8"):
            project(torch.zeros(5, 16).bfloat16(), (odd, odd), table)
        with pytest.raises(KernelError, match="decode_ffn takes 1 to 8 tokens.* got 9 and 0"):
            weights = [[torch.zeros(16, 16).bfloat16()] * 3] * 2
            decode_ffn(torch.zeros(9, 16).bfloat16(), None, (odd[0], odd[0]), weights, 0, 1e-5)


@pytest.mark.parametrize(
    ("spans", "says"),
    [
        ([(0, 0, 3), (1, 4, 5)], "span 1 is rows 4 to 5, the one before ends at 3"),
        ([(0, 0, 3), (2, 3, 5)], "span 1 is of expert 2; there are 2"),
        ([(0, 0, -1)], "span 0 is rows 0 to -1"),
    ],
)
def test_spans_with_a_gap_or_an_unknown_expert_are_refused(spans: list, says: str) -> None:
    with pytest.raises(KernelError, match=says):
        TileTable.make(spans, "cpu")


def test_the_table_covers_every_row_once_with_its_expert() -> None:
    table = TileTable.make([(0, 0, 300), (1, 300, 300), (1, 300, 301), (0, 301, 429)], "cpu")
    rows = [(first + i, expert) for first, count, expert, _ in table.tiles.tolist() for i in range(count)]
    assert rows == [(r, 1 if r == 300 else 0) for r in range(429)]
    assert all(count <= 128 for _, count, _, _ in table.tiles.tolist())
