"""Forms of visual experts beside full ones: low-rank beside the shared text weight, several behind a learned gate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from components.adapters.lora import LoRA
from components.backbones.decoder import FFN
from components.backbones.gemma import Gemma
from components.backbones.qwen import Qwen3
from components.freezing.delta_tuning import Everything, VisualParameters
from components.routers.low_rank import LowRankLinear
from components.routers.modality import ModalityRouter
from components.routers.top_k import TopKExperts, TopKRouter, choose
from mmframe import expert_backends
from mmframe.contracts import ExpertRouter
from mmframe.cupy_backend import CupyBackend
from mmframe.errors import UserError
from mmframe.experts import active_parameters
from mmframe.freezing import freeze
from mmframe.generation import Step, run_prompts
from mmframe.layers import parse_layers
from mmframe.loading import load
from mmframe.model import MultimodalLM
from mmframe.weights import save_weights
from tests.helpers import (
    ALL_SITES,
    HIDDEN,
    QKV_FFN,
    VOCAB,
    all_hidden,
    all_logits,
    batch,
    differing,
    fit,
    loss_and_gradients,
    mixed_batch,
    roughen,
    row,
    snapshot,
    tiny_module,
    tiny_net,
)

LINEAR_SITES = dict.fromkeys(("q", "k", "v", "o", "ffn"), "all")
FORMS: dict[str, Callable[[], ExpertRouter]] = {
    "low_rank": lambda: ModalityRouter(ALL_SITES, form="low_rank", rank=4),
    "top_k": lambda: TopKRouter(LINEAR_SITES, num_experts=3, top_k=2),
    "top_1": lambda: TopKRouter({"ffn": "all"}, num_experts=3, top_k=1),
}
forms = pytest.mark.parametrize("form", FORMS)


def rough(form: str, seed: int = 3) -> MultimodalLM:
    """A model whose visual experts have something of their own to say."""
    net = tiny_net(router=FORMS[form]())
    roughen(nn.ModuleList(experts["visual"] for _, _, experts in net.backbone.sites() if "visual" in experts), seed)
    return net


# ---- every form


@forms
def test_text_only_logits_stay_bit_identical_while_visual_experts_train(form: str) -> None:
    module, dense = tiny_module(router=FORMS[form]()), tiny_net({})
    given = batch("ttttt", "ttt")
    wanted, before = all_logits(dense, given), snapshot(module.net)
    assert torch.equal(all_logits(module.net, given), wanted)
    fit(module, [mixed_batch(seed=s) for s in range(2)] + [batch("tiTT")])
    changed = differing(before, snapshot(module.net))
    assert any(".visual." in name for name in changed)
    assert all(".visual." in name or name.startswith("patch_embedder.") for name in changed)
    assert torch.equal(all_logits(module.net, given), wanted)


@forms
def test_experts_without_tokens_have_zero_and_not_missing_gradients(form: str) -> None:
    net = rough(form)
    _, text_only = loss_and_gradients(net, batch("tTT"))
    _, nothing = loss_and_gradients(net, batch("", ""))
    visual = [name for name in text_only if ".visual." in name]
    assert visual
    for gradients in (text_only, nothing):
        assert all(gradients[name] is not None and not gradients[name].any() for name in visual)  # type: ignore
    _, mixed = loss_and_gradients(net, batch("ttTTT", "tt[i]tTT", "tiTT", "t[iii]tTT", "iiTT"))
    silent = {name for name in visual if not mixed[name].any()}  # type: ignore[union-attr]
    assert silent == set() or form != "low_rank"
    assert not any(name.endswith(".visual.gate.weight") for name in silent), "the gate learns from the loss"


@forms
def test_packed_rows_and_chunks_give_what_a_single_row_gives(form: str) -> None:
    net = rough(form)
    alone = [all_logits(net, row(pattern, seed=s)) for s, pattern in enumerate(("tt[i]tt", "ttt", "[ii]t"))]
    together = all_logits(net, batch("tt[i]tt", "ttt", "[ii]t"))
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=1e-5)
    whole, cache = row("tt[i]tttt"), net.backbone.new_cache(1, 20)
    first = row("tt[i]t")
    first.ids, first.tiles = whole.ids[:9], whole.tiles
    got = [run_prompts(net, [first], cache)[0]]
    step = Step(net, cache)
    got += [step([int(token)])[0] for token in whole.ids[9:]]
    torch.testing.assert_close(torch.stack(got), all_logits(net, whole)[8:], atol=2e-5, rtol=1e-5)


@forms
def test_a_checkpoint_comes_back_to_the_last_bit(form: str, tmp_path: Path) -> None:
    net = rough(form)
    parts = {"backbone": net.backbone.spec, "patch_embedder": net.patch_embedder.spec, "router": net.router.spec}  # type: ignore[union-attr]
    save_weights(net, tmp_path / "weights.safetensors", {"model": parts | {"processor": None}})
    back = load(tmp_path).net
    assert torch.equal(all_logits(back, mixed_batch()), all_logits(net, mixed_batch()))


@forms
def test_the_kernels_leave_what_they_do_not_know_to_torch(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No emulator is installed: a kernel that was launched would fail."""
    expert_backends.say_once.cache_clear()
    net = rough(form).bfloat16()
    kernels = copy.deepcopy(net)
    for _, _, experts in kernels.backbone.sites():
        experts.backend = CupyBackend()
    assert torch.equal(all_hidden(kernels, mixed_batch()), all_hidden(net, mixed_batch()))
    assert torch.equal(all_hidden(kernels, batch("ttt")), all_hidden(net, batch("ttt")))
    assert "runs on torch" in capsys.readouterr().err


# ---- low rank


def test_low_rank_experts_start_as_the_text_experts_to_the_last_bit() -> None:
    net = tiny_net(router=FORMS["low_rank"]())
    assert torch.equal(all_logits(net, mixed_batch()), all_logits(tiny_net({}), mixed_batch()))


def test_the_shared_weight_is_stored_once_and_patterns_hit_the_additions_alone() -> None:
    net = tiny_net(router=FORMS["low_rank"]())
    dense = tiny_net({}).state_dict()
    new = {name: tensor for name, tensor in net.state_dict().items() if name not in dense}
    assert all(".visual." in name for name in new)
    matrices = {name for name, tensor in new.items() if tensor.ndim == 2}
    assert all(name.endswith(("factor_a", "factor_b")) for name in matrices) and matrices
    assert max(new[name].numel() for name in matrices) <= 4 * 48, "rank times a width, not a whole weight"
    report = freeze(net, VisualParameters(1e-3, 1e-3).groups(net.router.experts))
    assert {name for name in report.group_of if name.startswith("backbone.")} == set(new)


def test_it_is_the_text_layer_plus_b_a() -> None:
    net = rough("low_rank")
    layer = net.get_submodule("backbone.layers.1.ffn.visual.up")
    assert isinstance(layer, LowRankLinear)
    x, weight = torch.randn(5, HIDDEN), net.get_parameter("backbone.layers.1.ffn.text.up.weight")
    torch.testing.assert_close(layer(x), x @ (weight + layer.factor_b @ layer.factor_a).T)


def test_it_follows_the_text_weights_when_they_train_are_adapted_or_copied() -> None:
    net, x = rough("low_rank"), torch.randn(5, HIDDEN)

    def up(of: nn.Module, x: Tensor = x) -> tuple[Tensor, Tensor]:
        text, visual = (of.get_submodule(f"backbone.layers.1.ffn.{expert}.up") for expert in ("text", "visual"))
        return visual(x), text(x) + x @ (visual.factor_b @ visual.factor_a).T  # type: ignore[operator]

    before = up(net)[0]
    freeze(net, Everything(1e-3, 1e-3, 1e-3).groups(net.router.experts))
    _, gradients = loss_and_gradients(net, batch("iiT"))
    assert gradients["backbone.layers.0.ffn.text.up.weight"].any(), "images alone train the weight that is shared"  # type: ignore[union-attr]
    with torch.no_grad():
        net.get_parameter("backbone.layers.1.ffn.text.up.weight").mul_(2)
    torch.testing.assert_close(*up(net))
    assert not torch.allclose(up(net)[0], before)
    copied = copy.deepcopy(net)
    with torch.no_grad():
        copied.get_parameter("backbone.layers.1.ffn.text.up.weight").zero_()
    torch.testing.assert_close(*up(copied))
    torch.testing.assert_close(*up(net))
    adapter = LoRA(rank=2)
    adapter.install(net)
    roughen(nn.ModuleList([net.get_submodule("backbone.layers.1.ffn.text.up")]))
    torch.testing.assert_close(*up(net))
    adapter.merge(net)
    torch.testing.assert_close(*up(net))


# ---- learned routing


def test_every_token_gets_the_weighted_sum_of_its_best_experts() -> None:
    made = TopKExperts(FFN(6, 10), 6, num_experts=4, top_k=2, init="random", noise=0.0)
    roughen(made, std=0.5)
    x_TD = torch.randn(9, 6)
    wanted = []
    for x_D in x_TD:
        probabilities = made.gate(x_D).softmax(-1)
        best = probabilities.topk(2)
        weights = best.values / best.values.sum()
        wanted.append(sum(w * made.experts[int(e)](x_D) for w, e in zip(weights, best.indices, strict=True)))
    torch.testing.assert_close(made(x_TD), torch.stack(wanted))  # type: ignore[arg-type]


def test_one_expert_a_token_is_weighted_by_its_probability() -> None:
    weights_TK, chosen_TK = choose(torch.tensor([[0.0, 2.0, 1.0]]), 1)
    assert chosen_TK.tolist() == [[1]]
    torch.testing.assert_close(weights_TK, torch.tensor([0.0, 2.0, 1.0]).softmax(-1)[None, 1:2])


def test_copies_start_near_the_dense_model_and_differ_from_one_another() -> None:
    exact = tiny_net(router=TopKRouter(QKV_FFN, num_experts=3, noise=0.0))
    given = mixed_batch()
    dense = all_logits(tiny_net({}), given)
    torch.testing.assert_close(all_logits(exact, given), dense, atol=2e-5, rtol=1e-5)
    net = tiny_net(router=TopKRouter(QKV_FFN, num_experts=3))
    assert 0 < (all_logits(net, given) - dense).norm() / dense.norm() < 0.1
    a, b = (net.get_parameter(f"backbone.layers.0.ffn.visual.experts.{n}.up.weight") for n in (0, 1))
    assert not torch.equal(a, b)
    silent = tiny_net(router=TopKRouter({"ffn": "all"}, init="zero"))
    experts = silent.get_submodule("backbone.layers.0.ffn.visual")
    assert not experts(torch.randn(3, HIDDEN)).any()


def test_poisoned_visual_experts_do_not_reach_text_rows() -> None:
    net, given = rough("top_k"), batch("tttt")
    before = all_logits(net, given)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if ".visual." in name:
                parameter.fill_(float("nan"))
    assert torch.equal(all_logits(net, given), before)


# ---- sites and layers


def test_qk_norm_is_short_for_both_norms() -> None:
    sizes = dict(hidden_size=HIDDEN, num_layers=3, num_heads=4, kv_heads=2, intermediate_size=48, vocab_size=VOCAB)
    backbone = Qwen3(**sizes, head_dim=8)  # type: ignore[arg-type]
    MultimodalLM(backbone, None, ModalityRouter({"qk_norm": "0,2"}), "torch")
    have = {(layer, site) for layer, site, experts in backbone.sites() if "visual" in experts}
    assert have == {(layer, site) for layer in (0, 2) for site in ("q_norm", "k_norm")}


def test_a_site_that_only_some_layers_have() -> None:
    """Gemma's global layers take their keys for values: here layers 1 and 2 have no v."""
    backbone = Gemma(**Gemma.toy_args)
    MultimodalLM(backbone, None, ModalityRouter({"v": "all"}), "torch")
    assert [layer for layer, _, experts in backbone.sites() if "visual" in experts] == [0]
    with pytest.raises(UserError, match="layers 1 of Gemma have no site 'v'; leave them out of '0-1'"):
        MultimodalLM(Gemma(**Gemma.toy_args), None, ModalityRouter({"v": "0-1"}), "torch")


def test_layers_in_several_pieces() -> None:
    assert parse_layers("0-3,8-11", 12) == (0, 1, 2, 3, 8, 9, 10, 11)
    assert parse_layers("-1, 0-4/2, 2", 12) == (0, 2, 4, 11)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: ModalityRouter({"qk_norm": "all", "k_norm": "0"}), "layers of site k_norm are given twice"),
        (lambda: tiny_net({"qk_norm": "all"}), "Llama has no site 'q_norm'"),
        (lambda: ModalityRouter(form="low"), "form='low' must be full or low_rank"),
        (lambda: ModalityRouter(form="low_rank", init="zero"), "starts as the text expert that it shares"),
        (lambda: tiny_net(router=ModalityRouter(form="low_rank", rank=32)), "rank 32 is no low rank of a layer 32 ->"),
        (lambda: TopKRouter(top_k=5), "top_k=5 must be from 1 to num_experts=4"),
        (lambda: TopKRouter({"ffn_norm": "all"}), "has no experts at ffn_norm; use q, k, v, o, ffn"),
        (lambda: parse_layers("0-1,x", 3), "layers '0-1,x' not understood"),
        (lambda: parse_layers("0/0", 3), "not understood"),
    ],
)  # fmt: skip
def test_mistakes_are_named(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        wrong()


def test_active_parameters_are_those_that_one_token_passes() -> None:
    dense = active_parameters(tiny_net({}))
    assert dense == sum(p.numel() for p in tiny_net({}).parameters())
    assert active_parameters(tiny_net(ALL_SITES)) == dense, "of two experts alike one is active"
    factors = sum(p.numel() for n, p in tiny_net(router=ModalityRouter(form="low_rank", rank=2)).named_parameters()
                  if "factor" in n)  # fmt: skip
    assert active_parameters(tiny_net(router=ModalityRouter(form="low_rank", rank=2))) == dense + factors
    several = tiny_net(router=TopKRouter(num_experts=4, top_k=2))
    ffn = sum(p.numel() for p in several.backbone.layers[0].ffn["text"].parameters())  # type: ignore[index]
    gates = sum(p.numel() for n, p in several.named_parameters() if ".gate.weight" in n and p.shape[0] == 4)
    assert active_parameters(several) == dense + len(several.backbone.layers) * ffn + gates
