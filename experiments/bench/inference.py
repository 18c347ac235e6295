"""What routing saves over blending, end to end: prefill, decoding, a training step, peak memory.

`python -m experiments.bench.inference` writes experiments/results/inference_cpu.json.

The blend is what the released code does: both experts on all tokens, mixed by a mask, logits at all positions. Both
models share every weight and everything else of the engine, so the ratio is that of the work. While decoding, the
released code runs the text expert alone; the blend does not, so its ratio there is not the released code's, which took
0.30 s for the prefill, 0.83 s for forward and backward and 12.5 ms for a token on a machine of this kind (2 threads).

T tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from components.backbones.llama import Llama
from components.patch_embedders.mono import MonoPatchEmbedder
from components.routers.modality import ModalityRouter, SharedRouter
from experiments.bench.routing import Blend
from experiments.bench.timing import compare, ratio, write_result
from mmframe.batch import IGNORE, Batch, Sample
from mmframe.cli.malloc import keep_freed_memory
from mmframe.experts import Experts
from mmframe.generation import Step, run_prompts
from mmframe.kinds import TokenKind
from mmframe.model import MultimodalLM
from mmframe.objectives import NextToken
from mmframe.plan import Plan

SIZES = dict(hidden_size=512, num_layers=8, num_heads=8, kv_heads=4, intermediate_size=2048, vocab_size=8192)
VISUAL, TEXT = 256, 64
RELEASED = {"prefill": 0.30, "training step": 0.83, "decoding": 1 / 80}
"""Seconds that the released code takes; decoding: of a token."""


class BlendSite(Blend):
    """A blend whose mask follows the call: pictures in the prompt, text after it."""

    def __init__(self, experts: Experts) -> None:
        super().__init__(experts, torch.zeros(0))

    def forward(self, x_TD: Tensor, plan: Plan) -> Tensor:
        if len(self.mask) != len(x_TD):  # a decoding step
            self.mask = x_TD.new_zeros(len(x_TD), 1)
        return super().forward(x_TD, plan)


def routed_net() -> MultimodalLM:
    """The 67 M model: 448 px tiles of 256 tokens, FFN experts in every layer."""
    torch.manual_seed(0)
    backbone = Llama(tied_head=False, **SIZES)
    embedder = MonoPatchEmbedder(hidden_size=SIZES["hidden_size"], channels=320)
    return MultimodalLM(backbone, embedder, ModalityRouter({"ffn": "all"}), expert_backend="torch")


def blended_net(net: MultimodalLM, kinds_T: Tensor) -> MultimodalLM:
    """A model of the same weights that blends. `kinds_T` is the prompt's."""
    with torch.device("meta"):  # all of it is replaced
        backbone = Llama(tied_head=False, **SIZES)
        blended = MultimodalLM(backbone, net.patch_embedder, ModalityRouter({"ffn": "all"}), expert_backend="torch")
    mask_T1 = (kinds_T == TokenKind.IMAGE).float()[:, None]
    for layer, ours in zip(backbone.layers, net.backbone.layers, strict=True):  # type: ignore[arg-type]
        for name, module in ours.named_children():
            setattr(layer, name, module)
        layer.ffn = BlendSite(ours.ffn)
        layer.ffn.mask = mask_T1
    backbone.embedding, backbone.norm, backbone.output = net.backbone.embedding, net.backbone.norm, net.backbone.output
    blended.router = SharedRouter()  # tokens stay in sequence order
    return blended


def prompt() -> Sample:
    """256 visual and 64 text tokens, text after the picture, every text token supervised."""
    kinds = [int(TokenKind.IMAGE)] * VISUAL + [int(TokenKind.TEXT)] * TEXT
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, SIZES["vocab_size"], (VISUAL + TEXT,), generator=generator)
    labels = torch.where(torch.tensor(kinds) == TokenKind.TEXT, ids.roll(-1), IGNORE)
    labels[-1] = IGNORE
    return Sample.from_ids(ids, kinds=kinds, labels=labels, tiles=torch.randn(1, 3, 448, 448, generator=generator))


@torch.no_grad()
def routed_prefill(net: MultimodalLM, sample: Sample, room: int = 0) -> Step:
    cache = net.backbone.new_cache(1, len(sample) + room)
    run_prompts(net, [sample], cache)
    return Step(net, cache)


@torch.no_grad()
def blended_prefill(net: MultimodalLM, sample: Sample, room: int = 0) -> Step:
    for layer in net.backbone.layers:  # type: ignore[union-attr]
        layer.ffn.mask = (sample.kinds == TokenKind.IMAGE).float()[:, None]
    cache = net.backbone.new_cache(1, len(sample) + room)
    net(Batch.collate([sample]), logits_at=torch.arange(len(sample)), cache=cache)
    return Step(net, cache)


def decoder(step: Step, tokens: int) -> Callable[[], None]:
    """Decodes greedily from the end of the prompt, as often as it is called."""
    start = list(step.cache.lengths)

    def run() -> None:
        step.cache.truncate(start)
        ids = [1]
        for _ in range(tokens):
            ids = step(ids).argmax(-1).tolist()

    return run


def by_whole_forwards(net: MultimodalLM, sample: Sample, tokens: int) -> Callable[[], None]:
    """Decodes by giving each token to the model as a batch of its own: what the lean step saves."""
    step = routed_prefill(net, sample, tokens)
    start, at = list(step.cache.lengths), torch.tensor([0])

    @torch.no_grad()
    def run() -> None:
        step.cache.truncate(start)
        token = 1
        for position in range(start[0], start[0] + tokens):
            batch = Batch.collate([Sample.from_ids([token], positions=[position])])
            token = int(net(batch, logits_at=at, cache=step.cache).logits.argmax())

    return run


def routed_training(net: MultimodalLM, batch: Batch) -> Callable[[], None]:
    def run() -> None:
        net.zero_grad(set_to_none=True)
        total, weight = NextToken()(net, batch)
        (total / weight).backward()

    return run


def blended_training(net: MultimodalLM, batch: Batch) -> Callable[[], None]:
    def run() -> None:
        net.zero_grad(set_to_none=True)
        for layer in net.backbone.layers:  # type: ignore[union-attr]
            layer.ffn.mask = (batch.kinds == TokenKind.IMAGE).float()[:, None]
        logits_TV = net(batch, logits_at=torch.arange(batch.num_tokens)).logits
        F.cross_entropy(logits_TV.float(), batch.labels, ignore_index=IGNORE).backward()

    return run


def peak_memory(mode: str, which: str) -> float:
    """MiB that a mode needs beyond the model, in a process of its own."""
    command = [sys.executable, "-m", "experiments.bench.inference", "--peak", mode, which]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _print_peak(mode: str, which: str) -> None:
    net, sample = routed_net(), prompt()
    if which == "blend":
        net = blended_net(net, sample.kinds)
    _ = torch.randn(256, 256) @ torch.randn(256, 256)  # libraries make their buffers
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _memory("VmRSS")
    if mode == "training step":
        (routed_training if which == "routed" else blended_training)(net, Batch.collate([sample]))()
    else:
        (routed_prefill if which == "routed" else blended_prefill)(net.eval(), sample)
    print(round(_memory("VmHWM") - before, 1))


def _memory(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def read_bandwidth(megabytes: int = 512, rounds: int = 9) -> float:
    """Bytes/s of the best matrix-vector product over a matrix much larger than any cache: decoding's own pattern."""
    matrix, vector = torch.ones(megabytes * 2**18 // 4096, 4096), torch.ones(4096)
    best = min(compare({"mv": lambda: matrix @ vector}, rounds)["mv"])
    return matrix.numel() * 4 / best


def bytes_per_token(net: MultimodalLM, context: int) -> int:
    """What one decoding step must read: text experts, norms, head, keys and values."""
    backbone: Any = net.backbone
    weights = sum(p.numel() for _, _, experts in backbone.sites() for p in experts["text"].parameters())
    weights += backbone.output.weight.numel() + backbone.norm.weight.numel()
    cached = 2 * backbone.num_layers * backbone.kv_heads * backbone.head_dim * context
    return 4 * (weights + cached)


def seconds_and_ratio(seconds: dict[str, list[float]], fast: str, slow: str, per: int = 1) -> dict[str, Any]:
    return {
        "seconds": {name: round(statistics.median(times) / per, 5) for name, times in seconds.items()},
        f"{slow} over {fast}": {name: round(value, 3) for name, value in ratio(seconds, slow, fast).items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64, help="decoded in one round")
    parser.add_argument("--dry", action="store_true", help="write no result")
    parser.add_argument("--peak", nargs=2, metavar=("MODE", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        return _print_peak(*args.peak)
    keep_freed_memory()  # as the commands do

    net, sample = routed_net(), prompt()
    blend = blended_net(net, sample.kinds)
    batch = Batch.collate([sample])
    figures: dict[str, Any] = {
        "model": SIZES | {"parameters": sum(p.numel() for p in net.parameters())},
        "tokens": {"visual": VISUAL, "text": TEXT, "decoded": args.tokens},
        "dtype": "float32",
        "threads": args.threads,
        "rounds": args.rounds,
        "released code, seconds": RELEASED,
    }
    training = {"routed": routed_training(net, batch), "blend": blended_training(blend, batch)}
    figures["training step"] = seconds_and_ratio(compare(training, args.rounds), "routed", "blend")
    net.eval()
    blend.eval()
    with torch.no_grad():
        torch.testing.assert_close(net(batch).logits, blend(batch).logits, atol=1e-4, rtol=1e-4)
    net.zero_grad(set_to_none=True)
    prefill = {"routed": lambda: routed_prefill(net, sample), "blend": lambda: blended_prefill(blend, sample)}
    figures["prefill"] = seconds_and_ratio(compare(prefill, args.rounds), "routed", "blend")

    steps = {
        "routed": routed_prefill(net, sample, args.tokens),
        "blend": blended_prefill(blend, sample, args.tokens),
    }
    decoding = {name: decoder(step, args.tokens) for name, step in steps.items()}
    decoding["routed, whole forwards"] = by_whole_forwards(net, sample, args.tokens)
    seconds = compare(decoding, args.rounds)
    figures["decoding"] = seconds_and_ratio(seconds, "routed", "blend", per=args.tokens)
    bandwidth = read_bandwidth()
    needed = bytes_per_token(net, VISUAL + TEXT + args.tokens // 2)
    best = args.tokens / statistics.median(seconds["routed"])
    figures["decoding"] |= {
        "tokens per second": {name: round(args.tokens / statistics.median(s), 1) for name, s in seconds.items()},
        "bytes per token": needed,
        "bandwidth, GB/s": round(bandwidth / 1e9, 2),
        "floor, tokens per second": round(bandwidth / needed, 1),
        "share of the floor": round(best * needed / bandwidth, 3),
    }
    peaks = {
        mode: {which: peak_memory(mode, which) for which in ("routed", "blend")}
        for mode in ("prefill", "training step")
    }
    figures["peak memory beyond the model, MiB"] = peaks
    for mode in ("prefill", "training step", "decoding"):
        mine = figures[mode]["seconds"]["routed"]
        figures[mode]["released code over routed, across machines"] = round(RELEASED[mode] / mine, 2)
    print(json.dumps(figures, indent=2))
    if not args.dry:
        print(write_result("inference_cpu", "python -m experiments.bench.inference", figures))


if __name__ == "__main__":
    main()
