"""SmolLM2 from the installed GGUF file: the numbers are those of transformers on the same weights."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from components.backbones.llama import SmolLM2
from components.patch_embedders.linear import LinearPatchEmbedder
from components.routers.modality import SharedRouter
from mmframe.batch import Batch, Sample
from mmframe.generation import generate
from mmframe.model import MultimodalLM
from mmframe.paths import smollm2_gguf
from mmframe.processing import SmolLM2Tokenizer
from tests.helpers import all_logits

PROMPTS = [
    "The capital of France is",
    "Once upon a time, a little elephant",
    "<|im_start|>user\nWhat colour is the sky?<|im_end|>\n<|im_start|>assistant\n",
    "2 + 2 =",
]


@pytest.fixture(scope="module")
def reference() -> Any:
    """transformers' model, read by transformers' own GGUF reader (10 s)."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM

    file = smollm2_gguf()
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def net() -> MultimodalLM:
    backbone = SmolLM2()
    embedder = LinearPatchEmbedder(backbone.hidden_size, image_size=32)
    return MultimodalLM(backbone, embedder, SharedRouter(), expert_backend="torch").eval()


@pytest.fixture(scope="module")
def prompts() -> list[Sample]:
    tokenizer = SmolLM2Tokenizer()
    return [Sample.from_ids(tokenizer.encode(text, special=True)) for text in PROMPTS]


def test_parameter_count(net: MultimodalLM) -> None:
    assert sum(p.numel() for p in net.backbone.parameters()) == 134_515_008


@torch.no_grad()
def test_logits_equal_transformers(reference: Any, net: MultimodalLM, prompts: list[Sample]) -> None:
    for sample in prompts:
        expected: Tensor = reference(sample.ids[None]).logits[0]
        torch.testing.assert_close(all_logits(net, sample), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_logits_of_rows_of_different_lengths_equal_transformers(
    reference: Any, net: MultimodalLM, prompts: list[Sample]
) -> None:
    expected = torch.cat([reference(sample.ids[None]).logits[0] for sample in prompts])
    # one product over all rows sums in another order than a row alone: fp32 noise of 1.4e-4 on one CPU
    torch.testing.assert_close(all_logits(net, Batch.collate(prompts)), expected, atol=2e-4, rtol=0)


def test_greedy_continuation_equals_transformers(reference: Any, net: MultimodalLM, prompts: list[Sample]) -> None:
    new = 12
    made = generate(net, prompts, max_new_tokens=new).ids
    for sample, ours in zip(prompts, made, strict=True):
        options = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=2)
        theirs = reference.generate(sample.ids[None], attention_mask=torch.ones(1, len(sample)), **options)
        assert ours == theirs[0, len(sample) :].tolist()
    text = SmolLM2Tokenizer().decode(made[0])
    assert "Paris" in text
