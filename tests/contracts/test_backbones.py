"""What every backbone promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from components.routers.modality import ModalityRouter, SharedRouter
from mmframe.contracts import (
    SITES,
    ExpertRouter,
)
from mmframe.errors import UserError
from mmframe.experts import Experts
from mmframe.generation import Step
from mmframe.geometry import ATTENTION, POSITIONS
from mmframe.model import MultimodalLM
from tests.contracts.support import NO_NATIVE, every, make
from tests.helpers import (
    QKV_FFN,
    all_logits,
    batch,
    loss_and_gradients,
    roughen,
    row,
    tiny_embedder,
)
from tests.model.test_attention import cut


def model_of(cls: type, router: ExpertRouter | None = None, **options: Any) -> MultimodalLM:
    backbone = make(cls, **options)
    embedder = tiny_embedder(hidden_size=backbone.hidden_size)
    roughen(backbone, seed=1)
    roughen(embedder, seed=2)
    return MultimodalLM(backbone, embedder, router or SharedRouter(), expert_backend="torch").eval()


@every("backbone")
def test_backbone_runs_and_all_of_it_trains(cls: type) -> None:
    net = model_of(cls, ModalityRouter({site: "all" for _, site, _ in make(cls).sites()}))
    loss, gradients = loss_and_gradients(net, batch("ttTTT", "tt[i]tTT", "tiTT"))  # "iT": a slot that predicts a word
    assert loss.isfinite()
    for name, gradient in gradients.items():
        assert gradient is not None, f"{name} has no gradient"
        assert gradient.isfinite().all() and (gradient.any() or name == "patch_embedder.class_embedding"), name


@every("backbone")
def test_backbone_says_its_sizes(cls: type) -> None:
    net = model_of(cls)
    backbone = net.backbone
    ids = torch.tensor([0, backbone.vocab_size - 1])
    assert backbone.embed(ids).shape == (2, backbone.hidden_size)
    assert backbone.head(torch.zeros(3, backbone.hidden_size)).shape == (3, backbone.vocab_size)
    cos, sin = backbone.rope(torch.arange(5), torch.tensor(5))
    assert cos.shape == sin.shape and cos.shape[0] == 5 and cos.dtype == torch.float32
    sites = list(backbone.sites())
    assert {layer for layer, _, _ in sites} == set(range(backbone.num_layers))
    assert {site for _, site, _ in sites} <= set(SITES)
    assert all(isinstance(experts, Experts) and list(experts) == ["text"] for _, _, experts in sites)


@every("backbone")
@pytest.mark.parametrize(
    ("attention", "positions"),
    [*((mask, "linear") for mask in ATTENTION), *(("causal", turn) for turn in POSITIONS if turn != "linear")],
)  # any two together: tests/model/test_geometry.py
def test_backbone_continues_over_a_cache(cls: type, attention: str, positions: str) -> None:
    """A turn with a picture, another one, and then token by token: the same as the whole row at once."""
    if positions == "native" and cls.__name__ in NO_NATIVE:
        with pytest.raises(UserError, match="has no positions=native"):
            make(cls, positions=positions)
        return
    net = model_of(cls, ModalityRouter(QKV_FFN), attention=attention, positions=positions, pre_layers=1)
    whole = row("tt[ii]tTTt[i]ttt")
    pieces = [cut(whole, first, end) for first, end in [(0, 14), (14, 21)]]
    cache = net.backbone.new_cache(1, len(whole))
    made = [all_logits(net, piece, cache=cache) for piece in pieces]
    step = Step(net, cache)
    made += [step([int(token)]) for token in whole.ids[21:]]
    torch.testing.assert_close(torch.cat(made), all_logits(net, whole), atol=2e-5, rtol=1e-5)


@every("backbone")
def test_text_turns_the_same_under_all_positions(cls: type) -> None:
    options = [{}, {"positions": "shared"}, {"positions": "grid"}, {"attention": "image_bidirectional"}]
    first, *others = (all_logits(model_of(cls, **more), batch("ttt", "tttttt")) for more in options)  # type: ignore
    assert all(torch.equal(logits, first) for logits in others)


@every("backbone")
def test_new_layers_in_front_change_nothing_at_first(cls: type) -> None:
    plain, given = model_of(cls), batch("tt[i]tTT", "tTT")
    text = plain.backbone.state_dict()
    for init in ("identity", "random"):
        net = MultimodalLM(make(cls, pre_layers=2, pre_layers_init=init), plain.patch_embedder, SharedRouter(), "torch")
        new = set(net.backbone.state_dict()) - set(text)
        assert new and all(name.startswith("pre_layers.") for name in new)
        assert set(net.backbone.load_state_dict(text, strict=False).missing_keys) == new
        assert torch.equal(all_logits(net, given), all_logits(plain, given)) == (init == "identity")
        assert {layer for layer, _, _ in net.backbone.sites()} == set(range(net.backbone.num_layers))


@every("backbone")
def test_backbone_computes_in_bf16_and_refuses_fp16(cls: type) -> None:
    given = batch("tt[i]tT")
    wide = all_logits(model_of(cls), given)
    narrow = all_logits(model_of(cls).bfloat16(), given).float()
    assert float((narrow - wide).norm() / wide.norm()) < 0.1
    with pytest.raises(UserError, match="fp16"):
        all_logits(model_of(cls).half(), given)
