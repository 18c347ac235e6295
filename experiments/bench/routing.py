"""What routing costs: a mixed layer against a dense one, and planned slices against blending two experts.

`python -m experiments.bench.routing` writes experiments/results/routing_cpu.json.

T tokens, D hidden.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from components.backbones.llama import Llama
from components.routers.modality import ModalityRouter, SharedRouter
from experiments.bench.timing import compare, ratio, write_result
from mmframe.batch import Batch, Sample
from mmframe.contracts import ExpertRouter
from mmframe.expert_backends import TORCH
from mmframe.experts import Experts
from mmframe.kinds import TokenKind
from mmframe.layout import Layout
from mmframe.plan import Plan

SIZES = {
    "SmolLM2-135M": dict(hidden_size=576, num_heads=9, kv_heads=3, intermediate_size=1536),
    "InternLM2-1.8B": dict(hidden_size=2048, num_heads=16, kv_heads=8, intermediate_size=8192),
}
FFN = {"ffn": "all"}
QKV_FFN = {"q": "all", "k": "all", "v": "all", "ffn": "all"}


class Blend(nn.Module):
    """Both experts on every token, mixed by a mask: how the released code routes. For comparison only."""

    backend = TORCH

    def __init__(self, experts: Experts, is_visual_T1: Tensor) -> None:
        super().__init__()
        self.text, self.visual, self.mask = experts["text"], experts["visual"], is_visual_T1

    def forward(self, x_TD: Tensor, plan: Plan) -> Tensor:
        return self.text(x_TD) * (1 - self.mask) + self.visual(x_TD) * self.mask


def mixed_batch(tokens: int, image_share: float, rows: int) -> Batch:
    """Rows of text, image, text with the given share of image tokens."""
    length = tokens // rows
    slots = round(length * image_share)
    before = (length - slots) // 2
    kinds = [TokenKind.TEXT] * before + [TokenKind.IMAGE] * slots + [TokenKind.TEXT] * (length - slots - before)
    return Batch.collate([Sample.from_ids([1] * length, kinds=[int(k) for k in kinds]) for _ in range(rows)])


def layer_runner(
    sizes: dict[str, int], router: ExpertRouter, batch: Batch, train: bool, blend: bool
) -> Callable[[], None]:
    """One decoder layer, forward or forward and backward, on the batch."""
    torch.manual_seed(0)
    backbone = Llama(num_layers=1, vocab_size=8, **sizes)
    router.install(backbone)
    if blend:
        is_visual = (batch.kinds == TokenKind.IMAGE).to(torch.bfloat16)[:, None]
        layer = backbone.layers[0]
        for site in ("q", "k", "v", "ffn"):
            if len(getattr(layer, site)) > 1:
                setattr(layer, site, Blend(getattr(layer, site), is_visual))
    backbone = backbone.to(torch.bfloat16)
    x_TD = torch.randn(batch.num_tokens, sizes["hidden_size"]).to(torch.bfloat16)

    def run() -> None:
        plan = router.plan(batch.kinds)
        if blend:  # stays in sequence order
            plan = SharedRouter().plan(batch.kinds)
        layout = Layout.build(batch, plan, backbone, torch.bfloat16)
        with torch.set_grad_enabled(train):
            y_TD = backbone(plan.sort(x_TD.requires_grad_(train)), plan, layout)
            if train:
                y_TD.float().square().mean().backward()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--image-share", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    figures: dict[str, object] = {"tokens": args.tokens, "image_share": args.image_share, "dtype": "bfloat16"}
    for name, sizes in SIZES.items():
        for sites, experts_at in (("ffn", FFN), ("q,k,v,ffn", QKV_FFN)):
            batch = mixed_batch(args.tokens, args.image_share, rows=4)
            for mode, train in (("prefill", False), ("training step", True)):
                candidates = {
                    "dense": layer_runner(sizes, SharedRouter(), batch, train, blend=False),
                    "routed": layer_runner(sizes, ModalityRouter(experts_at), batch, train, blend=False),
                    "blend": layer_runner(sizes, ModalityRouter(experts_at), batch, train, blend=True),
                }
                seconds = compare(candidates, args.rounds)
                figures[f"{name}, {sites}, {mode}"] = {
                    "milliseconds": {n: round(1e3 * min(s), 2) for n, s in seconds.items()},
                    "routed over dense": ratio(seconds, "routed", "dense"),
                    "blend over routed": ratio(seconds, "blend", "routed"),
                }
                print(name, sites, mode, figures[f"{name}, {sites}, {mode}"])
    print(write_result("routing_cpu", "python -m experiments.bench.routing", figures))


if __name__ == "__main__":
    main()
