"""A model and a batch of moderate size, with weights and without."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from components.backbones.llama import Llama
from components.freezing.delta_tuning import Everything, VisualAndAttention, VisualParameters
from components.patch_embedders.mono import MonoPatchEmbedder
from components.routers.modality import ModalityRouter
from mmframe.batch import Batch
from mmframe.contracts import FreezingPolicy
from mmframe.freezing import FreezingReport, freeze
from mmframe.model import MultimodalLM
from mmframe.module import MultimodalModule
from mmframe.optim import AdamWSchedule
from mmframe.processing import ByteTokenizer, ChatProcessor
from tests.helpers import QKV_FFN, row

POLICIES: dict[str, FreezingPolicy] = {
    "S1.1": VisualParameters(1e-4, 1e-4),
    "S1.3": VisualAndAttention(1e-4, 1e-4, 1e-4),
    "S2": Everything(1e-4, 1e-4, 1e-4),
}
SMALL = dict(hidden_size=64, num_layers=2, num_heads=4, kv_heads=2, intermediate_size=128, vocab_size=320)
MEDIUM = dict(hidden_size=256, num_layers=4, num_heads=8, kv_heads=4, intermediate_size=1024, vocab_size=8192)
LARGE = dict(hidden_size=512, num_layers=8, num_heads=8, kv_heads=4, intermediate_size=1536, vocab_size=16384)


def parts(sizes: dict[str, int]) -> dict[str, Any]:
    """Components; on the meta device inside of `torch.device("meta")`."""
    return dict(
        backbone=Llama(**sizes),
        patch_embedder=MonoPatchEmbedder(sizes["hidden_size"], image_size=112, patch_size=14, channels=64),
        router=ModalityRouter(QKV_FFN),
    )


def meta_net(sizes: dict[str, int], policy: FreezingPolicy, dtype: torch.dtype) -> tuple[nn.Module, FreezingReport]:
    with torch.device("meta"):
        net = MultimodalLM(**parts(sizes), expert_backend="torch")
    return net.to(dtype), freeze(net, policy.groups(net.router.experts))


def module(sizes: dict[str, int], policy: FreezingPolicy) -> MultimodalModule:
    processor, optim = ChatProcessor(ByteTokenizer()), AdamWSchedule(warmup_steps=0, schedule="constant")
    return MultimodalModule(**parts(sizes), freezing=policy, processor=processor, optim=optim, expert_backend="torch")


def rows(count: int) -> Batch:
    """Rows of two tiles of 16 tokens and 32 of text, half of it learnt; one without a picture."""
    samples = [row("[ii]" + "t" * 14 + "T" * 16, seed=n, image_size=112, per_tile=16) for n in range(count)]
    samples[-1] = row("t" * 32 + "T" * 32, image_size=112, per_tile=16)
    return Batch.collate(samples)
