"""Memory for time: layers computed again, logits in chunks. The numbers do not change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from components.backbones.gemma import Gemma
from components.freezing.delta_tuning import Everything
from mmframe.errors import UserError
from mmframe.objectives import NextToken
from mmframe.recompute import recompute_layers
from tests.helpers import (
    QKV_FFN,
    Recording,
    all_logits,
    batch,
    differing,
    fit,
    mixed_batch,
    snapshot,
    tiny_module,
    tiny_net,
)


def test_recomputed_layers_train_bit_for_bit_alike() -> None:
    """Through the trainer, with text-only and empty batches."""
    batches = [mixed_batch(), batch("tttTTT"), batch(""), mixed_batch(seed=3)]
    made = []
    for recompute in (False, True):
        module = tiny_module(QKV_FFN, freezing=Everything(1e-3, 1e-3, 1e-3), module_class=Recording)
        module.recompute = recompute
        fit(module, batches)
        assert isinstance(module, Recording)
        made.append((snapshot(module.net), module.recorded))
    assert differing(made[0][0], made[1][0]) == set()
    assert all(differing(one, other) == set() for one, other in zip(made[0][1], made[1][1], strict=True))


def test_recomputed_layers_keep_their_inputs_alone() -> None:
    """Bytes that the graph saves: of the layers, what goes in; the rest is as before."""
    given, saved = mixed_batch(), []
    for recompute in (False, True):
        net = tiny_net(QKV_FFN)
        if recompute:
            recompute_layers(net.backbone.stack())
        own = {p.untyped_storage().data_ptr() for p in net.parameters()}
        seen: dict[int, int] = {}

        def keep(tensor: Tensor, own: set[int] = own, seen: dict[int, int] = seen) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            net(given)
        saved.append(sum(seen.values()))
    assert saved[1] < 0.25 * saved[0], saved


def test_generation_does_not_notice() -> None:
    net, given = tiny_net(QKV_FFN, distinct=True), mixed_batch()
    expected = all_logits(net, given)
    recompute_layers(net.backbone.stack())
    assert torch.equal(all_logits(net, given), expected)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("backbone", ["llama", "gemma"])
def test_the_loss_in_chunks_is_the_loss(chunk: int, backbone: str) -> None:
    """Each position to the last bit or the rounding of another product size; gradients to the order of a sum. Gemma's
    logits are capped."""
    given, results = mixed_batch(), []
    for size in (None, chunk):
        net = tiny_net(QKV_FFN, backbone=Gemma(**Gemma.toy_args) if backbone == "gemma" else None)
        total, weight = NextToken("sqrt", chunk=size)(net, given)
        total.backward()
        results.append((total.detach(), weight, {n: p.grad for n, p in net.named_parameters()}))
    torch.testing.assert_close(results[1][0], results[0][0], atol=0, rtol=1e-6)
    assert torch.equal(results[0][1], results[1][1])
    for name, gradient in results[0][2].items():
        assert float((results[1][2][name] - gradient).norm()) <= 1e-6 * float(gradient.norm()), name


def test_the_gradient_of_the_loss_in_chunks_is_right() -> None:
    """gradcheck in fp64, with a loss in fp64 in place of ours, which is fp32."""
    from mmframe.chunked_loss import chunked_cross_entropy

    generator = torch.Generator().manual_seed(0)
    h_SD = torch.randn(5, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(7, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    labels_S = torch.tensor([0, 6, 3, 3, 1])

    def loss(h_SD: Tensor, weight: Tensor) -> Tensor:
        exact = lambda logits, labels: torch.nn.functional.cross_entropy(logits, labels, reduction="none")  # noqa: E731
        return chunked_cross_entropy(lambda h: h @ weight.T, h_SD, labels_S, 2, exact)

    assert torch.autograd.gradcheck(loss, (h_SD, weight))


def test_no_more_logits_exist_than_a_chunk_has() -> None:
    """The largest tensor of width V that forward and backward make."""
    seen: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, Tensor) and tensor.ndim == 2 and tensor.shape[1] == 64:  # V
                    seen.append(tensor.shape[0])
            return out

    net = tiny_net({}).requires_grad_(False)
    net.patch_embedder.requires_grad_(True)  # type: ignore[union-attr]
    given = batch("[i]TTTTTTTTTTTTTTT", "[i]TTTTTTTT")
    with Watch():
        NextToken(chunk=4)(net, given)[0].backward()
    assert seen and max(n for n in seen if n != 32) <= 4, seen  # 32 x 64 are weights


def test_a_batch_without_labels_has_a_loss_in_chunks_too() -> None:
    net = tiny_net(QKV_FFN)
    total, weight = NextToken(chunk=2)(net, batch("tt[i]t"))
    total.backward()
    assert total == 0 and weight == 0
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())


def test_a_chunk_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="chunk=0 must be at least 1 position"):
        NextToken(chunk=0)
