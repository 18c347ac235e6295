"""Text backbones: the numbers of transformers on the same weights, official names both ways, clear refusals."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from components.backbones.decoder import Decoder
from components.backbones.internlm2 import InternLM2
from components.backbones.llama import Llama, SmolLM2
from components.backbones.persimmon import Persimmon
from components.backbones.qwen import Qwen2, Qwen3
from components.routers.modality import ModalityRouter, SharedRouter
from mmframe.batch import Batch, Sample
from mmframe.errors import UserError
from mmframe.generation import generate
from mmframe.model import MultimodalLM
from mmframe.weights import load_weights
from tests.helpers import QKV_FFN, all_logits, batch, roughen, row, tiny_embedder, tiny_internlm2, tiny_llama

OURS: dict[str, type[Decoder]] = {"Llama": Llama, "Mistral": Llama, "Qwen2": Qwen2, "Qwen3": Qwen3}
SIZES: dict[str, Any] = dict(
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    vocab_size=96,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
)
LENGTH = 40


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0} | more}


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=256)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=64)
YARN_OPTIONS = rope(
    "yarn", factor=4.0, beta_fast=4.0, beta_slow=0.5, attention_factor=0.7, original_max_position_embeddings=64
)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied head": ("Llama", {"tie_word_embeddings": True}),
    "llama, attention bias": ("Llama", {"attention_bias": True}),
    "llama, head size of its own": ("Llama", {"head_dim": 20}),
    "llama, a key for every head": ("Llama", {"num_key_value_heads": None}),
    "llama, eps and theta": ("Llama", {"rms_norm_eps": 1e-2} | rope("default", rope_theta=500.0)),
    "llama, linear": ("Llama", rope("linear", factor=4.0)),
    "llama, dynamic within": ("Llama", rope("dynamic", factor=2.0)),
    "llama, dynamic beyond": ("Llama", {"max_position_embeddings": 16} | rope("dynamic", factor=2.0)),
    "llama, llama3": ("Llama", LLAMA3),
    "llama, yarn": ("Llama", YARN),
    "llama, yarn with all options": (
        "Llama",
        rope(
            "yarn", factor=4.0, beta_fast=4.0, beta_slow=0.5, attention_factor=0.7, original_max_position_embeddings=64
        ),
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2, yarn": ("Qwen2", YARN | {"tie_word_embeddings": True}),
    "qwen2, window switched off": ("Qwen2", {"use_sliding_window": False, "sliding_window": 8}),
    "qwen3": ("Qwen3", {"head_dim": 36}),
    "qwen3, attention bias": ("Qwen3", {"head_dim": 12, "attention_bias": True, "tie_word_embeddings": True}),
}
cases = pytest.mark.parametrize("case", CASES)
SCALED = [name for name in CASES if "rope_parameters" in CASES[name][1] and "within" not in name]


def transformers_model(case: str) -> Any:
    """A tiny model of transformers with rough weights."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    family, options = CASES[case]
    config = getattr(transformers, f"{family}Config")(**(SIZES | options))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    roughen(model, std=0.15)
    return model


def ours_of(theirs: Any, cls: type[Decoder]) -> MultimodalLM:
    """Our model from transformers' config and tensors; every one of them, strictly."""
    config = theirs.config.to_dict()
    backbone = cls(**cls.from_hf_config(config))
    state = dict(theirs.state_dict())
    if config["tie_word_embeddings"]:
        state.pop("lm_head.weight")  # not in a file either
    links = backbone.tensor_map()
    assert sorted(link.theirs for link in links) == sorted(state)
    ours: dict[str, Tensor] = {}
    for link in links:
        ours |= link.to_ours(state[link.theirs])
    assert load_weights(backbone, ours) == []
    return MultimodalLM(backbone, None, SharedRouter(), expert_backend="torch").eval()


def rows() -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    return [Sample.from_ids(torch.randint(0, 96, (length,), generator=generator)) for length in (LENGTH, 9, 14)]


# ---- numbers


@cases
@torch.no_grad()
def test_logits_equal_transformers(case: str) -> None:
    theirs = transformers_model(case)
    net = ours_of(theirs, OURS[CASES[case][0]])
    expected = torch.cat([theirs(sample.ids[None]).logits[0] for sample in rows()])
    torch.testing.assert_close(all_logits(net, Batch.collate(rows())), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", SCALED)
@torch.no_grad()
def test_every_rotary_option_counts(case: str) -> None:
    """The comparison above would also pass with an option that changed nothing."""
    family, options = CASES[case]
    config = SIZES | options | {"model_type": "llama", "attention_bias": False}
    plain, scaled = ({**config, "rope_parameters": None}, config)
    logits = []
    for given in (plain, scaled):
        backbone = Llama(**Llama.from_hf_config(given))
        roughen(backbone, std=0.15)
        net = MultimodalLM(backbone, None, SharedRouter(), expert_backend="torch").eval()
        logits.append(all_logits(net, rows()[0]))
    assert (logits[0] - logits[1]).abs().max() > 1e-2


@pytest.mark.parametrize("case", ["llama", "llama, dynamic beyond", "llama, yarn", "qwen2", "qwen3"])
@torch.no_grad()
def test_greedy_decoding_with_a_cache_equals_transformers(case: str) -> None:
    """Dynamic NTK: transformers keeps cached keys at their old base, as the released code does; ours is what a run
    without a cache gives."""
    theirs, new = transformers_model(case), 12
    prompts = rows()[1:]
    made = generate(ours_of(theirs, OURS[CASES[case][0]]), prompts, max_new_tokens=new).ids
    options = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)
    for sample, ours in zip(prompts, made, strict=True):
        whole = theirs.generate(
            sample.ids[None], attention_mask=torch.ones(1, len(sample)), use_cache="dynamic" not in case, **options
        )
        assert ours == whole[0, len(sample) :].tolist()


def test_old_and_new_form_of_rotary_settings_mean_the_same() -> None:
    base = SIZES | {"model_type": "qwen2"}
    new = base | rope("yarn", factor=4.0, original_max_position_embeddings=32, rope_theta=1e6)
    for key in ("type", "rope_type"):
        scaling = {key: "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
        assert Qwen2.from_hf_config(base | {"rope_theta": 1e6, "rope_scaling": scaling}) == Qwen2.from_hf_config(new)
    assert Qwen2.from_hf_config(base | {"rope_scaling": None, "rope_theta": 1e6})["rope_scaling"] == "none"


# ---- norms of q and k are sites


def qwen3_net(sites: dict[str, str], distinct: bool = False) -> MultimodalLM:
    backbone = Qwen3(**Qwen3.toy_args)
    embedder = tiny_embedder()
    roughen(backbone, seed=1)
    roughen(embedder, seed=2)
    router = ModalityRouter(sites) if sites else SharedRouter()
    net = MultimodalLM(backbone, embedder, router, expert_backend="torch").eval()
    if distinct:
        for _, _, experts in backbone.sites():
            if "visual" in experts:
                roughen(experts["visual"], seed=3, std=1.0)
                for parameter in experts["visual"].parameters():
                    parameter.data *= 1.5
    return net


@pytest.mark.parametrize("site", ["q_norm", "k_norm"])
def test_visual_norms_of_q_and_k_act_on_images_alone(site: str) -> None:
    dense, copied, distinct = qwen3_net({}), qwen3_net({site: "all"}), qwen3_net({site: "all"}, distinct=True)
    mixed, text = batch("[i]tt", "tt[i]t"), batch("tttt", "tt")
    torch.testing.assert_close(all_logits(copied, mixed), all_logits(dense, mixed), atol=1e-5, rtol=1e-5)
    assert (all_logits(distinct, mixed) - all_logits(dense, mixed)).abs().max() > 1e-2
    assert torch.equal(all_logits(distinct, text), all_logits(dense, text))


def test_a_site_that_a_backbone_lacks_is_an_error_that_names_its_sites() -> None:
    with pytest.raises(UserError, match="Llama has no site 'q_norm'.*its sites: q, k, v, o, ffn, attn_norm, ffn_norm$"):
        ModalityRouter({"ffn": "all", "q_norm": "all"}).install(tiny_llama())
    sites = {site for _, site, _ in Qwen3(**Qwen3.toy_args).sites()}
    assert sites == {"q", "k", "v", "o", "ffn", "attn_norm", "ffn_norm", "q_norm", "k_norm"}


def test_a_cache_holds_heads_of_their_own_size() -> None:
    net, sample = qwen3_net({}), row("ttttt")
    cache = net.backbone.new_cache(1, 8)
    all_logits(net, sample, cache=cache)
    assert net.backbone.head_dim == 12 and cache.keys[0].shape[-1] == 12


# ---- official names

LAYER0 = "model.layers.0."
NAMES: dict[str, tuple[Decoder, dict[str, str], set[str]]] = {
    "dense InternLM2": (tiny_internlm2(), {}, set()),
    "Mono-InternVL": (
        tiny_internlm2(),
        {"ffn": "all"},
        {f"{LAYER0}feed_forward_ve.{w}.weight" for w in ("w1", "w2", "w3")},
    ),
    "Mono-InternVL-1.5": (
        tiny_internlm2(bias=True),
        QKV_FFN,
        {f"{LAYER0}feed_forward_ve.{w}.weight" for w in ("w1", "w2", "w3")}
        | {f"{LAYER0}attention.wqkv_ve.{kind}" for kind in ("weight", "bias")},
    ),
    "single projections": (
        tiny_internlm2(),
        {"q": "all", "v": "0"},
        {f"{LAYER0}attention.wq_ve.weight", f"{LAYER0}attention.wv_ve.weight"},
    ),
    "k and v": (
        tiny_internlm2(head_dim=12),
        {"k": "all", "v": "all"},
        {f"{LAYER0}attention.wk_ve.weight", f"{LAYER0}attention.wv_ve.weight"},
    ),
    "o and norms": (
        tiny_internlm2(),
        {"o": "0", "attn_norm": "0", "ffn_norm": "all"},
        {f"{LAYER0}{name}.weight" for name in ("attention.wo_ve", "attention_norm_ve", "ffn_norm_ve")},
    ),
    "Llama": (
        tiny_llama(),
        {"q": "all", "ffn": "0"},
        {f"{LAYER0}self_attn.q_proj_ve.weight"}
        | {f"{LAYER0}mlp_ve.{part}_proj.weight" for part in ("gate", "up", "down")},
    ),
    "Qwen3": (
        Qwen3(**Qwen3.toy_args),
        {"q_norm": "all", "attn_norm": "0"},
        {f"{LAYER0}self_attn.q_norm_ve.weight", f"{LAYER0}input_layernorm_ve.weight"},
    ),
}


@pytest.mark.parametrize(("backbone", "sites", "ours"), NAMES.values(), ids=NAMES.keys())
def test_official_names_follow_the_installed_experts(backbone: Decoder, sites: dict[str, str], ours: set[str]) -> None:
    before = {link.theirs for link in backbone.tensor_map()}
    ModalityRouter(sites).install(backbone)
    links = backbone.tensor_map()
    names = [link.theirs for link in links]
    assert len(set(names)) == len(names) and before <= set(names)
    assert {name for name in set(names) - before if name.startswith(LAYER0)} == ours
    parameters = dict(backbone.named_parameters())
    assert sorted(name for link in links for name in link.ours) == sorted(parameters)
    roughen(backbone)
    for link in links:  # official and back, to the last bit
        joined = link.to_theirs(*(parameters[name] for name in link.ours))
        for name, tensor in link.to_ours(joined).items():
            assert torch.equal(tensor, parameters[name]), name
    with torch.device("meta"):
        shapes = {link.theirs: link.to_theirs(*(parameters[n].to("meta") for n in link.ours)).shape for link in links}
    assert all(len(shape) in (1, 2) for shape in shapes.values())


def test_wqkv_rows_are_grouped_by_key_value_head() -> None:
    backbone = tiny_internlm2(num_heads=4, kv_heads=2)  # head_dim 8, two query heads a group
    rows = torch.arange(64.0)
    q, k, v = backbone.split_wqkv(rows)
    assert q.tolist() == [*range(0, 16), *range(32, 48)]
    assert k.tolist() == [*range(16, 24), *range(48, 56)] and v.tolist() == [*range(24, 32), *range(56, 64)]
    assert torch.equal(backbone.join_wqkv(q, k, v), rows)


# ---- sizes, and what is refused


def test_full_sizes_are_the_published_ones() -> None:
    with torch.device("meta"):
        counts = {cls.__name__: sum(p.numel() for p in cls().parameters()) for cls in (Qwen2, Qwen3)}
    assert counts == {"Qwen2": 494_032_768, "Qwen3": 596_049_920}


FAMILIES: dict[str, tuple[Callable[[], Decoder], int]] = {
    "Vicuna-7B (EVE)": (partial(Llama, 4096, 32, 32, 32, 11008, 32000, tied_head=False), 6_738_415_616),
    "Mistral-7B (SOLO)": (partial(Llama, 4096, 32, 32, 8, 14336, 32000, tied_head=False), 7_241_732_096),
    "Mistral-7B-v0.3 (SAIL)": (partial(Llama, 4096, 32, 32, 8, 14336, 32768, tied_head=False), 7_248_023_552),
    "InternLM2-1.8B (HoVLE)": (partial(InternLM2, vocab_size=92544), 1_889_110_016),
    "Qwen2.5-7B (EVEv2, VoRA, BREEN)": (partial(Qwen2, 3584, 28, 28, 4, 18944, 152064, tied_head=False), 7_615_616_512),
    "Qwen3-1.7B (NEO)": (partial(Qwen3, 2048, 28, 16, 8, 6144), 1_720_574_976),
    "Qwen3-8B (NEO)": (partial(Qwen3, 4096, 36, 32, 8, 12288, tied_head=False), 8_190_735_360),
    "Fuyu-8B without its embedder": (Persimmon, 9_408_238_592 - 2700 * 4096 - 4096),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_backbones_of_other_families_have_their_published_size(name: str) -> None:
    build, count = FAMILIES[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == count


def refusal(**changes: Any) -> dict[str, Any]:
    return SIZES | {"rope_theta": 10000.0} | changes


REFUSED: dict[str, tuple[type[Decoder], dict[str, Any], str]] = {
    "another model": (Llama, refusal(model_type="gemma"), "model_type='gemma' is no Llama, which reads llama"),
    "activation": (Llama, refusal(hidden_act="gelu"), "hidden_act='gelu'"),
    "bias of the FFN": (Llama, refusal(mlp_bias=True), "mlp_bias=True"),
    "dropout": (Qwen2, refusal(attention_dropout=0.1), "attention_dropout=0.1"),
    "quantised": (Llama, refusal(quantization_config={"bits": 4}), "quantization_config="),
    "unknown rope": (Llama, refusal(rope_scaling={"type": "longrope", "factor": 2.0}), "scaling 'longrope'.*allowed:"),
    "rope option": (
        Llama,
        refusal(rope_scaling={"type": "yarn", "factor": 2.0, "mscale": 1.0}),
        "'yarn' has mscale=1.0",
    ),
    "rope without factor": (Qwen3, refusal(rope_scaling={"type": "linear"}), "'linear' has no factor"),
    "partial rotation": (Llama, refusal(partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
    "interleaved rotation": (Llama, refusal(rope_interleaved=True), "rope_interleaved=True"),
    "rope of InternLM2": (InternLM2, refusal(rope_scaling={"type": "yarn", "factor": 2.0}), "scaling 'yarn'"),
    "window": (
        Qwen2,
        refusal(use_sliding_window=True, sliding_window=8, max_window_layers=1),
        "sliding_window=8 is used from layer 1 of 3",
    ),
    "window of Mistral 0.1": (Llama, refusal(model_type="mistral", sliding_window=4096), "sliding_window=4096"),
    "window by layer": (
        Qwen3,
        refusal(layer_types=["full_attention", "sliding_attention", "full_attention"]),
        "only full attention",
    ),
    "missing size": (Llama, {k: v for k, v in refusal().items() if k != "vocab_size"}, "vocab_size=None is missing"),
}


@pytest.mark.parametrize(("cls", "config", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_config_says_and_we_cannot_do_is_refused_by_name(
    cls: type[Decoder], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        cls.from_hf_config({"model_type": cls.model_types[0]} | config)


def test_defaults_of_the_official_classes_stand_in_for_missing_keys() -> None:
    """InternLM2's class has a bias unless the config says otherwise; Qwen3's heads have 128 dimensions."""
    bare = {k: v for k, v in SIZES.items() if k not in ("rms_norm_eps", "num_key_value_heads")}
    internlm2 = InternLM2.from_hf_config(bare | {"model_type": "internlm2"})
    assert internlm2["bias"] is True and internlm2["norm_eps"] == 1e-6 and internlm2["kv_heads"] == 4
    assert internlm2["rope_scaling"] == "none" and internlm2["rope_theta"] == 10000.0
    assert Qwen3.from_hf_config(bare | {"model_type": "qwen3"})["head_dim"] == 128


def test_mistakes_in_arguments_are_named() -> None:
    with pytest.raises(UserError, match="scaling='dynamik' is not known; did you mean 'dynamic'"):
        tiny_llama(rope_scaling="dynamik")
    with pytest.raises(UserError, match="no option 'low_freq'; did you mean 'low_freq_factor'"):
        tiny_llama(rope_scaling="llama3", rope_options={"low_freq": 1.0})
    with pytest.raises(UserError, match="has no option 'beta_fast'; options: none"):
        tiny_llama(rope_scaling="linear", rope_options={"beta_fast": 1.0})
    with pytest.raises(UserError, match="low_freq_factor < high_freq_factor"):
        tiny_llama(rope_scaling="llama3", rope_options={"low_freq_factor": 4.0})
    with pytest.raises(UserError, match="head_dim must be even"):
        tiny_llama(head_dim=9)
    with pytest.raises(UserError, match="hidden_size 33 must divide into 4 heads"):
        tiny_llama(hidden_size=33)
    with pytest.raises(UserError, match="SmolLM2 has one size"):
        SmolLM2.from_hf_config({"model_type": "llama"})
