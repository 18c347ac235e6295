"""The papers' sizes are those of the default classes."""

from __future__ import annotations

import functools

import torch

from components.backbones.internlm2 import InternLM2
from components.patch_embedders.mono import MonoPatchEmbedder
from components.routers.modality import ModalityRouter, SharedRouter
from mmframe.model import MultimodalLM


@functools.cache
def parameters_at_full_size(*sites: str) -> int:
    with torch.device("meta"):
        backbone = InternLM2()
        embedder = MonoPatchEmbedder(hidden_size=backbone.hidden_size)
        router = ModalityRouter(dict.fromkeys(sites, "all")) if sites else SharedRouter()
        net = MultimodalLM(backbone, embedder, router, expert_backend="torch")
    return sum(p.numel() for p in net.parameters())


def test_full_size_parameter_counts_are_those_of_the_papers() -> None:
    with torch.device("meta"):
        backbone = InternLM2()
    assert round(sum(p.numel() for p in backbone.parameters()) / 1e9, 3) == 1.889
    assert parameters_at_full_size("ffn") == 3_111_355_392  # Mono-InternVL: 3.11B as released
    assert parameters_at_full_size("ffn") - parameters_at_full_size() == 1_207_959_552  # "1.2B" of visual experts
    qkv = parameters_at_full_size("ffn", "q", "k", "v")
    assert qkv - parameters_at_full_size("ffn") == 24 * 8_388_608
    assert round(qkv / 1e9, 3) == 3.313  # Mono-InternVL-1.5
    assert round(parameters_at_full_size("ffn", "q", "k", "v", "o") / 1e9, 3) == 3.413
