"""Experts and routing: who sees which weights, and that text sees only its own (P13, P16, P18, P19)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from components.backbones.decoder import FFN, RMSNorm
from components.routers.modality import ModalityRouter, SharedRouter
from mmframe.errors import UserError
from mmframe.experts import Experts, new_expert
from mmframe.generation import generate
from mmframe.kinds import TokenKind
from mmframe.layers import parse_layers
from mmframe.plan import Plan
from tests.helpers import (
    ALL_SITES,
    QKV_FFN,
    all_hidden,
    all_logits,
    batch,
    fit,
    loss_and_gradients,
    mixed_batch,
    roughen,
    row,
    tiny_internlm2,
    tiny_llama,
    tiny_module,
    tiny_net,
)

SITE_SETS = {
    "none": {},
    **{site: {site: "all"} for site in ALL_SITES},
    "qkv_ffn": QKV_FFN,
    "norms": {"attn_norm": "all", "ffn_norm": "all"},
    "some_layers": {"ffn": "0-2/2", "q": "-1", "o": "1", "ffn_norm": "1-2"},
    "everywhere": ALL_SITES,
}
site_sets = pytest.mark.parametrize("sites", SITE_SETS.values(), ids=SITE_SETS.keys())
MODULES = {"linear": lambda: nn.Linear(6, 6), "norm": lambda: RMSNorm(6, 1e-5), "ffn": lambda: FFN(6, 10)}
modules = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())


def two_experts(make: object = MODULES["ffn"]) -> Experts:
    text, visual = make(), make()  # type: ignore[operator]
    roughen(text, seed=1, std=0.5)
    roughen(visual, seed=2, std=0.5)
    experts = Experts(text)
    experts["visual"] = visual
    return experts


def run(experts: Experts, x_TD: Tensor, is_visual_T: Tensor) -> Tensor:
    """Sequence order in, sequence order out."""
    plan = Plan.from_experts(is_visual_T.long(), 2)
    return plan.unsort(experts(plan.sort(x_TD), plan))


# ---- one site


@modules
def test_one_expert_is_the_plain_module(make: object) -> None:
    module = make()  # type: ignore[operator]
    x = torch.randn(5, 6)
    plan = Plan.from_experts(torch.tensor([0, 1, 1, 0, 1]), 2)
    assert torch.equal(Experts(module)(x, plan), module(x))


@modules
def test_each_token_gets_the_output_of_its_own_expert(make: object) -> None:
    experts, x = two_experts(make), torch.randn(7, 6)
    is_visual = torch.tensor([0, 1, 1, 0, 1, 0, 0]).bool()
    expected = torch.where(is_visual[:, None], experts["visual"](x), experts["text"](x))
    torch.testing.assert_close(run(experts, x, is_visual), expected, atol=1e-6, rtol=0)


@modules
@pytest.mark.parametrize("poisoned", ["text", "visual"])
def test_a_poisoned_expert_reaches_only_its_own_tokens(make: object, poisoned: str) -> None:
    check_poison(two_experts(make), poisoned)


def check_poison(experts: Experts, poisoned: str) -> None:
    """P16: NaN or infinite weights of one expert leave the other kind's tokens as they were, to the last bit."""
    x, is_visual = torch.randn(9, 6), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 0]).bool()
    healthy = is_visual if poisoned == "text" else ~is_visual
    before = run(experts, x, is_visual)[healthy]
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            for parameter in experts[poisoned].parameters():
                parameter.fill_(value)
        after = run(experts, x, is_visual)
        assert torch.equal(after[healthy], before)
        assert not after[~healthy].isfinite().any()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_permuting_tokens_commutes_with_routing(kinds: list[int], random: object) -> None:
    places = list(range(len(kinds)))
    random.shuffle(places)  # type: ignore[attr-defined]
    experts, x, is_visual = two_experts(), torch.randn(len(kinds), 6), torch.tensor(kinds).bool()
    permuted = run(experts, x[places], is_visual[places])
    torch.testing.assert_close(permuted, run(experts, x, is_visual)[places], atol=1e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=20))
def test_a_plan_is_a_permutation_with_one_slice_per_expert(experts: list[int]) -> None:
    expert_T = torch.tensor(experts)
    plan = Plan.from_experts(expert_T, 3)
    x = torch.arange(len(experts))
    assert torch.equal(plan.unsort(plan.sort(x)), x)
    assert torch.equal(plan.sort(x)[plan.place(x)], x)
    assert plan.num_tokens == len(experts) == plan.offsets[-1]
    for expert, (first, end) in enumerate(zip(plan.offsets, plan.offsets[1:], strict=False)):
        mine = plan.sort(x)[first:end]
        assert torch.equal(mine, (expert_T == expert).nonzero().flatten())  # stable: in sequence order
    assert [e for e, first, end in plan.segments for _ in range(first, end)] == experts


@pytest.mark.parametrize("expert", ["text", "visual"])
def test_an_expert_without_tokens_gets_zero_and_not_missing_gradients(expert: str) -> None:
    check_empty_expert(two_experts(), empty=expert)


def check_empty_expert(experts: Experts, empty: str) -> None:
    """What keeps ranks in step: the graph does not depend on what a rank happened to see."""
    everything = torch.full((4,), empty == "text")
    run(experts, torch.randn(4, 6), everything).sum().backward()
    for name, parameter in experts.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert bool(parameter.grad.any()) == (not name.startswith(empty)), name


# ---- the model


@site_sets
@pytest.mark.parametrize("make", [tiny_llama, tiny_internlm2])
def test_experts_stand_where_the_recipe_says_and_nowhere_else(make: object, sites: dict[str, str]) -> None:
    net = tiny_net(sites, backbone=make())  # type: ignore[operator]
    found = {(layer, site) for layer, site, experts in net.backbone.sites() if "visual" in experts}
    layers = {"all": range(3), "0-2/2": (0, 2), "-1": (2,), "1": (1,), "1-2": (1, 2)}
    assert found == {(layer, site) for site, which in sites.items() for layer in layers[which]}


@site_sets
def test_copied_experts_leave_the_dense_model_as_it_was(sites: dict[str, str]) -> None:
    """P18: at step 0 the routed model is the dense one, on any input, to 1e-6 of the largest logit."""
    dense, routed = all_logits(tiny_net({}), mixed_batch()), all_logits(tiny_net(sites), mixed_batch())
    assert (dense - routed).abs().max() <= 1e-6 * dense.abs().max()


@pytest.mark.parametrize("site", ALL_SITES)
def test_visual_experts_act_on_images_at_every_site(site: str) -> None:
    """The other side of the promises: a site that ignored its visual expert would pass them all."""
    dense, routed = tiny_net({}), tiny_net({site: "all"}, distinct=True)
    given = batch("[i]tt")
    assert (all_logits(dense, given) - all_logits(routed, given)).abs().max() > 1e-2


@site_sets
def test_text_only_logits_are_bit_identical_to_the_dense_model(sites: dict[str, str]) -> None:
    """P13 before training, with visual experts that have nothing in common with the text ones."""
    dense, routed = tiny_net({}), tiny_net(sites, distinct=bool(sites))
    given = batch("tttt", "tttttttt", "tt|ttt/tt/t")
    assert torch.equal(all_logits(dense, given), all_logits(routed, given))
    prompts = [row("ttt"), row("ttttt", seed=1)]
    assert generate(dense, prompts, 6).ids == generate(routed, prompts, 6).ids


@pytest.mark.parametrize("sites", [{"ffn": "all"}, QKV_FFN, ALL_SITES], ids=["ffn", "qkv_ffn", "everywhere"])
def test_text_only_logits_stay_bit_identical_while_visual_parameters_train(sites: dict[str, str]) -> None:
    check_text_preserved(sites)


def test_text_only_logits_stay_bit_identical_in_bf16_too() -> None:
    check_text_preserved(QKV_FFN, dtype=torch.bfloat16, precision="bf16-true")


def check_text_preserved(sites: dict[str, str], dtype: torch.dtype = torch.float32, **options: str) -> None:
    """P13 during and after training on mixed batches, weight decay included."""
    dense, given = tiny_net({}).to(dtype), batch("tttt", "tttttttt", "tt|ttt/tt/t")
    expected, images = all_logits(dense, given), batch("[i]tt", "t[ii]t")
    module = tiny_module(sites)
    before = all_logits(module.net.to(dtype), images)
    for step in range(3):
        fit(module, [mixed_batch(seed=10 * step), mixed_batch(seed=10 * step + 5)], **options)
        assert {p.dtype for p in module.net.parameters()} == {dtype}
        assert torch.equal(all_logits(module.net.eval(), given), expected)
    assert (all_logits(module.net, images) - before).abs().max() > 1e-2  # it did learn something


def test_poisoned_visual_experts_do_not_reach_text_rows() -> None:
    net = tiny_net(ALL_SITES)
    given = batch("tttt", "t[i]tt", "tttttt")
    before = all_hidden(net, given)
    for _, _, experts in net.backbone.sites():
        nn.init.constant_(next(experts["visual"].parameters()), float("nan"))
    after = all_hidden(net, given)
    text_rows = torch.tensor([True] * 4 + [False] * 9 + [True] * 6)
    assert torch.equal(after[text_rows], before[text_rows])
    assert after[(given.kinds == TokenKind.IMAGE)].isnan().all()


def test_another_visual_expert_changes_nothing_before_the_image() -> None:
    given = batch("tttt[i]tttt")
    first, second = tiny_net(ALL_SITES), tiny_net(ALL_SITES, distinct=True)
    difference = (all_hidden(first, given) - all_hidden(second, given)).abs().amax(dim=1)
    assert not difference[:5].any() and (difference[5:] > 1e-3).all()


def expert_names(router: ModalityRouter, kinds: list[TokenKind]) -> list[str]:
    return [router.experts[e] for e in router.plan(torch.tensor(kinds, dtype=torch.int8)).expert_T]


def test_boundary_tokens_are_text_and_queries_visual() -> None:
    assert expert_names(ModalityRouter(), list(TokenKind)) == ["text", "visual", "text", "visual", "text"]


def test_kinds_of_the_visual_expert_can_be_chosen() -> None:
    router = ModalityRouter(visual_kinds=["image", "boundary"])
    assert expert_names(router, list(TokenKind)) == ["text", "visual", "visual", "text", "text"]


def test_a_batch_without_text_or_without_images_needs_no_sorting() -> None:
    for pattern in ("ttt", "ii"):
        assert ModalityRouter().plan(batch(pattern).kinds).order is None
    assert SharedRouter().plan(mixed_batch().kinds).order is None


def test_the_plan_is_made_on_the_host_wherever_the_router_was_built() -> None:
    with torch.device("meta"):
        router = ModalityRouter()
    assert router.plan(mixed_batch().kinds).sizes == ModalityRouter().plan(mixed_batch().kinds).sizes


@modules
def test_experts_that_start_at_zero_are_silent(make: object) -> None:
    expert = new_expert(make(), "zero")  # type: ignore[operator]
    y = expert(torch.randn(4, 6))
    if isinstance(expert, RMSNorm):
        assert torch.equal(expert.weight, torch.ones(6))
    else:
        assert not y.any()


@modules
def test_experts_that_start_random_share_nothing_with_the_text_expert(make: object) -> None:
    text = make()  # type: ignore[operator]
    roughen(text, seed=1)
    expert = new_expert(text, "random")
    assert [p.shape for p in expert.parameters()] == [p.shape for p in text.parameters()]
    for mine, theirs in zip(expert.parameters(), text.parameters(), strict=True):
        assert not torch.equal(mine, theirs)
        if mine.ndim > 1:
            assert 0.005 < mine.detach().std() < 0.05


def test_copied_experts_share_no_memory_with_the_text_expert() -> None:
    net = tiny_net(ALL_SITES)
    places = {p.data_ptr() for p in net.parameters()}
    assert len(places) == len(list(net.parameters()))


def test_training_a_mixed_batch_reaches_text_and_visual_experts_of_every_site() -> None:
    """Of the last layer, an image slot's keys and values matter to the words after it, the rest of it to no label."""
    _, gradients = loss_and_gradients(tiny_net(ALL_SITES, distinct=True), mixed_batch())
    silent = {name for name, gradient in gradients.items() if gradient is None or not gradient.any()}
    last = {f"backbone.layers.2.{site}.visual" for site in ("q", "o", "ffn_norm", "ffn")}
    assert {name for name in silent if not name.startswith(tuple(last))} == {"patch_embedder.class_embedding"}
    assert all(any(name.startswith(site) for name in silent) for site in last)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [("all", range(24)), ("5", [5]), ("12-23", range(12, 24)), ("0-22/2", range(0, 23, 2)), ("-8--1", range(16, 24))],
)
def test_layer_selectors(selector: str, expected: list[int]) -> None:
    assert list(parse_layers(selector, 24)) == list(expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: tiny_net({"fnn": "all"}), "no site 'fnn'; did you mean 'ffn'"),
        (lambda: tiny_net({"ffn": "0-3"}), "layers '0-3' are outside the backbone's 0..2"),
        (lambda: tiny_net({"ffn": "2-1"}), "outside"),
        (lambda: tiny_net({"ffn": "every"}), "layers 'every' not understood"),
        (lambda: tiny_net(init="copied"), "init='copied' is not known; use copy, zero or random"),
        (lambda: ModalityRouter(visual_kinds=["imgae"]), "no token kind 'imgae'; did you mean 'image'"),
    ],
)
def test_mistakes_in_the_router_are_named(wrong: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        wrong()  # type: ignore[operator]
