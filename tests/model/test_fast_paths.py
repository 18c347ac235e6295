"""The formulas written by hand for training equal torch's own, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from components.backbones.decoder import RMSNorm, attend
from mmframe.objectives import CHUNK, cross_entropy


def close(ours: Tensor, theirs: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_plain_attention_equals_sdpa(kv_heads: int, masked: bool) -> None:
    q = torch.randn(3, 4, 7, 8, requires_grad=True)
    k, v = (torch.randn(3, kv_heads, 7, 8, requires_grad=True) for _ in range(2))
    mask = None
    if masked:
        mask = (torch.rand(3, 1, 7, 7) < 0.5).tril()
        mask[..., 0] = True
    weights = torch.randn(3, 4, 7, 8)
    ours = attend(q, k, v, mask)
    grads = torch.autograd.grad((ours * weights).sum(), [q, k, v])
    theirs = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=True)
    expected = torch.autograd.grad((theirs * weights).sum(), [q, k, v])
    close(ours, theirs)
    for one, other in zip(grads, expected, strict=True):
        close(one, other)
    with torch.no_grad():
        close(attend(q, k, v, mask), theirs)


def test_rms_norm_gradients() -> None:
    norm = RMSNorm(16, 1e-5)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(9, 16, requires_grad=True)
    weights = torch.randn(9, 16)
    grads = torch.autograd.grad((norm(x) * weights).sum(), [x, norm.weight])
    theirs = F.rms_norm(x, (16,), norm.weight, 1e-5)
    expected = torch.autograd.grad((theirs * weights).sum(), [x, norm.weight])
    close(norm(x), theirs)
    for one, other in zip(grads, expected, strict=True):
        close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_gives_the_same_bits_with_and_without_gradients(dtype: torch.dtype) -> None:
    norm = RMSNorm(576, 1e-5).to(dtype)
    x = (3 * torch.randn(40, 576)).to(dtype)
    ours = norm(x)
    with torch.no_grad():
        assert torch.equal(norm(x), ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 100, 2**20])
def test_cross_entropy_in_chunks(dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK, "cpu", chunk)
    logits = (4 * torch.randn(11, 50)).to(dtype).requires_grad_()
    labels, weights = torch.randint(50, (11,)), torch.rand(11)
    ours = cross_entropy(logits, labels)
    grad = torch.autograd.grad((ours * weights).sum(), logits)[0]
    theirs = F.cross_entropy(logits.float(), labels, reduction="none")
    expected = torch.autograd.grad((theirs * weights).sum(), logits)[0]
    assert ours.dtype == torch.float32 and grad.dtype == dtype
    close(ours, theirs)
    close(grad, expected, atol=1e-5 if dtype == torch.float32 else 1e-3)


def test_cross_entropy_of_nothing_has_a_gradient_of_zero() -> None:
    logits = torch.zeros(0, 50, requires_grad=True)
    cross_entropy(logits, torch.zeros(0, dtype=torch.int64)).sum().backward()
    assert logits.grad is not None and logits.grad.shape == (0, 50)
