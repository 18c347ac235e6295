"""What only a device can say: each check is a function, run by pytest (test_gpu.py) or without it:

    python -m tests.cupy_kernels.on_device [--json FILE] [--only kernels] [--shapes deep ...]

Every PTX wrapper of csrc/device.cuh is in a kernel that is checked here: ldmatrix, its transposed form, mma.sync and
cp.async in sm80, mbarrier, TMA and every wgmma in sm90, 16-byte loads in decode.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cupy_kernels import kernels, launch, reference
from cupy_kernels.launch import GATE_UP_COLUMNS, PROJECT_COLUMNS, CudaLauncher
from cupy_kernels.ops import decode_ffn, ffn, project
from cupy_kernels.tiles import TileTable
from tests.cupy_kernels.cases import (
    CHECKS,
    DECODE,
    NORM_TOLERANCE,
    SHAPES,
    WIDTHS,
    Shape,
    check_decode_ffn,
    matrix,
    pair,
    tiles_of,
    wide,
    wrong,
)

Check = Callable[[torch.device], None]
KERNELS = "kernels"
MEDIUM = Shape(((0, 300), (1, 700)), 512, 1024)
PREFILLS = ((64, 256), (64, 1024), (64, 3328))
DOWN = (2048, 8192)
"""Rows of the experts, and the down projection, of InternLM2-1.8B."""


def kernel_checks(shapes: list[str]) -> dict[str, Check]:
    """The emulator's cases, on the device: its own family of kernels, and on Hopper also the mma.sync kernels."""
    found: dict[str, Check] = {}
    for family, choose_for in (("own", None), ("sm_80", (8, 0))):
        for kernel, check in CHECKS.items():
            for name in shapes:

                def run(device: torch.device, check: Any = check, name: str = name, family: Any = choose_for) -> None:
                    assert wrong(check(CudaLauncher(family), SHAPES[name], device)) == []

                found[f"{KERNELS}: {kernel}, {name}, {family}"] = run
    for kernel, columns in WIDTHS:

        def of_width(device: torch.device, kernel: str = kernel, columns: int = columns) -> None:
            with tiles_of(columns):
                assert wrong(CHECKS[kernel](CudaLauncher(), SHAPES["deep"], device)) == []

        found[f"{KERNELS}: {kernel}, {columns} columns"] = of_width
    for name, case in DECODE.items():

        def decode(device: torch.device, case: tuple[int, int] = case) -> None:
            assert wrong(check_decode_ffn(CudaLauncher(), case, device)) == []

        found[f"{KERNELS}: decode_ffn, {name}"] = decode
    return found


def experts(shape: Shape, device: torch.device) -> list[list[Tensor]]:
    D, N = shape.hidden, shape.intermediate
    return [[matrix(*s, device) for s in ((N, D), (N, D), (D, N))] for _ in range(2)]


def inputs(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    return tuple(torch.randn(shape.rows, shape.hidden, device=device).bfloat16() for _ in range(2))  # type: ignore[return-value]


def error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def gradients_agree_with_float64(device: torch.device) -> None:
    for name, shape in {"medium": MEDIUM, "many": SHAPES["many_short_spans"], "deep": SHAPES["deep"]}.items():
        table, weights, (x, residual) = shape.table(device), experts(shape, device), inputs(shape, device)
        leaves = [x, residual, *weights[0], *weights[1]]
        dy = torch.randn_like(x)
        for tensor in leaves:
            tensor.requires_grad_()
        wide = [t.detach().double().requires_grad_() for t in leaves]
        # on the reference, which is checked against autograd and gradcheck elsewhere
        want = ffn(wide[0], wide[1], [wide[2:5], wide[5:8]], table)
        expected = torch.autograd.grad(want, wide, dy.double())
        for recompute in (False, True):
            y = ffn(x, residual, weights, table, recompute)
            assert error(y, want) < 1.2e-2, name
            for got, exact in zip(torch.autograd.grad(y, leaves, dy), expected, strict=True):
                assert error(got, exact) < 1.5e-2, name


def a_delayed_producer_on_a_side_stream_is_waited_for(device: torch.device) -> None:
    """The launch goes to torch's current stream, behind what is on it already."""
    table, weights, (x, residual) = MEDIUM.table(device), experts(MEDIUM, device), inputs(MEDIUM, device)
    want = project(ffn(x, residual, weights, table), [w[0] for w in weights], table)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        late = torch.zeros_like(x)
        torch.cuda._sleep(200_000_000)  # some 0.1 s
        late.copy_(x)
        got = project(ffn(late, residual, weights, table), [w[0] for w in weights], table)
    side.synchronize()
    assert torch.equal(got, want)


def full_sizes_agree_with_float64_whatever_the_width_of_tiles(device: torch.device) -> None:
    """InternLM2-1.8B's FFN, where every multiprocessor has several tiles; equal bits when asked again."""
    run, (D, N) = CudaLauncher(), DOWN
    for rows in PREFILLS:
        T, table = sum(rows), TileTable.sorted(rows, device)
        x, h, downs = matrix(T, D, device), matrix(T, N, device), pair(D, N, device)
        gates, ups = pair(N, D, device), pair(N, D, device)
        want = reference.gate_up(x.double(), wide(gates), wide(ups), table.spans)[0]
        for columns in GATE_UP_COLUMNS:
            with tiles_of(columns):
                got = [kernels.gate_up(run, x, gates, ups, table.tiles, keep=False)[0] for _ in range(3)]
            assert error(got[0], want) < NORM_TOLERANCE, (rows, columns)
            assert all(torch.equal(got[0], again) for again in got), (rows, columns)
        want = reference.project(h.double(), wide(downs), (None, None), None, table.spans)
        for columns in PROJECT_COLUMNS:
            with tiles_of(columns):
                got = [kernels.project(run, h, downs, (None, None), None, table.tiles) for _ in range(3)]
            assert error(got[0], want) < NORM_TOLERANCE, (rows, columns)
            assert all(torch.equal(got[0], again) for again in got), (rows, columns)


def a_thread_without_a_context_launches(device: torch.device) -> None:
    """As one of autograd's is, whose first work may be the backward of a kernel."""
    x, weights = inputs(MEDIUM, device)[0], experts(MEDIUM, device)
    table = MEDIUM.table(device)
    want = project(x, [w[0] for w in weights], table)
    launch._encode_tensor_map.cache_clear()
    with ThreadPoolExecutor(1) as thread:
        assert torch.equal(thread.submit(project, x, [w[0] for w in weights], table).result(), want)


def a_captured_graph_gives_what_eager_gives(device: torch.device) -> None:
    table, weights, (x, residual) = MEDIUM.table(device), experts(MEDIUM, device), inputs(MEDIUM, device)
    norm = torch.rand(MEDIUM.hidden, device=device).bfloat16()

    def step() -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            y = ffn(x, residual, weights, table)
            return (
                y,
                project(y, [w[0] for w in weights], table),
                decode_ffn(y[:5], x[:5], (norm, norm), weights, 2, 1e-5),
            )

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (1, 2):
        torch.manual_seed(seed)
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


def two_runs_are_equal_to_the_last_bit(device: torch.device) -> None:
    """No sum whose order depends on the clock."""
    table, weights, (x, residual) = MEDIUM.table(device), experts(MEDIUM, device), inputs(MEDIUM, device)
    first = ffn(x, residual, weights, table)
    assert all(torch.equal(first, ffn(x, residual, weights, table)) for _ in range(20))


def _by_both_backends(net: Any) -> tuple[Any, Any]:
    from mmframe.cupy_backend import CupyBackend
    from mmframe.expert_backends import TORCH

    nets = []
    for backend in (CupyBackend(), TORCH):
        nets.append(copy.deepcopy(net))
        for _, _, sites in nets[-1].backbone.sites():
            sites.backend = backend
    return nets[0], nets[1]


def tiny_models_agree_in_prefill_decoding_and_graphs(device: torch.device) -> None:
    from mmframe.generation import StaticStep, Step, run_prompts
    from tests.helpers import ALL_SITES, QKV_FFN, row, tiny_internlm2, tiny_net

    for sites in ({"ffn": "all"}, QKV_FFN, ALL_SITES):
        net = tiny_net(sites, backbone=tiny_internlm2(), distinct=True).bfloat16().to(device)
        fused, plain = _by_both_backends(net)
        prompts = [row("tt[i]tt"), row("[i]t"), row("ttt")]
        results = []
        for model, kind in ((plain, Step), (fused, Step), (fused, StaticStep)):
            cache = model.backbone.new_cache(len(prompts), 32)
            step = StaticStep(model, cache, cuda_graph=True) if kind is StaticStep else None
            logits = [run_prompts(model, prompts, cache)]
            step = step or Step(model, cache)
            logits += [step([7 + n, 9, 11]).clone() for n in range(4)]
            results.append(torch.stack(logits))
        assert error(results[1], results[0]) < 5e-2
        assert error(results[2], results[1]) < 1e-2


def the_2b_model_agrees(device: torch.device) -> None:
    from components.backbones.internlm2 import InternLM2
    from components.routers.modality import ModalityRouter
    from mmframe.batch import Batch, Sample
    from mmframe.kinds import TokenKind
    from mmframe.layout import Layout
    from mmframe.model import MultimodalLM
    from tests.helpers import QKV_FFN

    with torch.device("meta"):
        net = MultimodalLM(InternLM2(vocab_size=64), None, ModalityRouter(QKV_FFN), expert_backend="torch")
    net = net.to(torch.bfloat16).to_empty(device=device).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0) if parameter.ndim == 1 else parameter.normal_(std=0.02)
    kinds = torch.tensor([TokenKind.IMAGE] * 1024 + [TokenKind.TEXT] * 64, dtype=torch.int8)
    given = Batch.collate([Sample.from_ids([1] * 1088, kinds=[int(TokenKind.TEXT)] * 1088)]).to(device)
    plan = net.router.plan(kinds).to(device)
    x = torch.randn(1088, 2048, device=device).bfloat16()
    outputs = []
    for model in _by_both_backends(net):
        layout = Layout.build(given, plan, model.backbone, x.dtype)
        with torch.no_grad():
            outputs.append(model.backbone.head(model.backbone(plan.sort(x), plan, layout)))
    assert error(*outputs) < 5e-2


CHECKS_OF_MORE: dict[str, Check] = {
    function.__name__.replace("_", " "): function
    for function in (
        gradients_agree_with_float64,
        a_delayed_producer_on_a_side_stream_is_waited_for,
        full_sizes_agree_with_float64_whatever_the_width_of_tiles,
        a_thread_without_a_context_launches,
        a_captured_graph_gives_what_eager_gives,
        two_runs_are_equal_to_the_last_bit,
        tiny_models_agree_in_prefill_decoding_and_graphs,
        the_2b_model_agrees,
    )
}
ALL: dict[str, Check] = kernel_checks(list(SHAPES)) | CHECKS_OF_MORE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write what passed and what failed")
    parser.add_argument("--only", choices=[KERNELS], help="the kernels alone, as under compute-sanitizer")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    args = parser.parse_args()
    checks = kernel_checks(args.shapes) | ({} if args.only else CHECKS_OF_MORE)
    passed, failed = [], {}
    for name, check in checks.items():
        torch.manual_seed(0)
        begun = time.perf_counter()
        try:
            check(torch.device("cuda", 0))
            passed.append(name)
        except Exception as error:  # one check's failure must not hide the others on a device that is lent for minutes
            failed[name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        print(f"{'FAILED' if name in failed else 'ok':<7}{name}  {time.perf_counter() - begun:.1f} s", flush=True)
        if args.json:
            args.json.write_text(json.dumps({"passed": len(passed), "failed": failed}, indent=1) + "\n")
    print(f"{len(passed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
