"""Recipes of other models: at full size they have the published number of parameters, and their headers say which."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mmframe import registry
from mmframe.cli.recipe import load_recipe
from mmframe.loading import empty_model
from tests.toy_size import toy_size

ROOT = Path(__file__).parents[1]
FAMILIES = sorted(p.stem for p in (ROOT / "recipes" / "families").glob("[!_]*.yaml"))
HEADER = ("Reproduces", "Cannot", "Launch", "Override", "Look first", "Size")

MAY_SHRINK = {
    "hidden_size", "num_layers", "num_heads", "kv_heads", "intermediate_size", "vocab_size", "head_dim", "pre_layers",
    "global_kv_heads", "global_head_dim", "global_every", "window", "grid_sections", "init_from",
    "image_size", "patch_size", "channels", "merge", "table_size", "num_queries", "model", "depth", "model_args",
    "layers", "teacher", "teacher_layers", "teacher_args", "img_size", "pretrained",
}  # fmt: skip

NEW = ("patch_embedder.", "backbone.pre_layers.")

VICUNA = 6.74  # Llama-2-7B, of which it is a fine-tuned one: its model card
MISTRAL = 7.24  # model card
QWEN2_5 = 7.61  # model card
INTERNLM2 = 1.89  # safetensors of internlm2-chat-1_8b


@dataclass(frozen=True)
class Size:
    """What is published of a model, in billions of parameters.

    Args:
        llm: The LLM it grows in, without anything new.
        model: The model; a name such as "7B" publishes no more than that digit.
        tolerance: How far ours may be away from `model`.
        why: Who says so; and where ours differs, for what reason.
        active: `model` counts what one token of text passes, and not all weights.
        experts: Their parameters, whole, from the published sizes of the layers that they copy.
    """

    llm: float
    model: float
    tolerance: float
    why: str
    active: bool = False
    experts: int = 0


def experts(layers: int, hidden: int, ffn: int, kv: int = 0, sites: str = "ffn") -> int:
    """Parameters of an expert at each site of each layer.

    Args:
        layers: Of the LLM.
        hidden: Its width.
        ffn: Width of its SwiGLU.
        kv: Width of all keys.
        sites: Words of: qkv, o, ffn, norms, biases (of q, k and v).
    """
    size = {
        "qkv": hidden * (hidden + 2 * kv),
        "o": hidden * hidden,
        "ffn": 3 * hidden * ffn,
        "norms": 2 * hidden,
        "biases": hidden + 2 * kv,
    }
    return layers * sum(size[site] for site in sites.split())


SIZES = {
    "evip": Size(INTERNLM2, 3.11, 0.005, "safetensors of OpenGVLab/Mono-InternVL-2B", experts=experts(24, 2048, 8192)),
    "evip_pp": Size(
        INTERNLM2,
        1.8,
        0.11,
        "'1.8B activated' (v1's page; embedder and head count here)",
        active=True,
        experts=experts(24, 2048, 8192, 1024, "qkv ffn"),
    ),
    "internvl_1_5": Size(INTERNLM2, 2.2, 0.01, "model card of Mini-InternVL-Chat-2B-V1-5"),
    "families/breen": Size(
        QWEN2_5, 7, 0.7, "'7B' in others' tables is the LLM", active=True, experts=experts(28, 3584, 18944)
    ),
    "families/cogvlm": Size(
        VICUNA,
        17,
        0.7,
        "README: 10 B visual and 7 B language; the adapter here is 0.12 B smaller",
        experts=experts(32, 4096, 11008, 4096, "qkv o ffn"),
    ),
    "families/eve": Size(VICUNA, 7, 0.5, "its name"),
    "families/eve_v2": Size(
        QWEN2_5,
        7,
        0.7,
        "its name is that of the LLM",
        active=True,
        experts=experts(28, 3584, 18944, 512, "qkv biases o ffn norms"),
    ),
    "families/fuyu": Size(9.40, 9.41, 0.005, "safetensors of adept/fuyu-8b; '8B' leaves out a vocabulary matrix"),
    "families/gemma_4_unified": Size(11.90, 11.95, 0.02, "model card; it has 2.5 M for audio, not here"),
    "families/hovle": Size(INTERNLM2, 2.6, 0.2, "model card; it counts a second table of text embeddings, 0.19 B"),
    "families/navil": Size(
        INTERNLM2,
        2.4,
        0.15,
        "arXiv 2510.08565, activated",
        active=True,
        experts=experts(24, 2048, 8192, 1024, "qkv o ffn"),
    ),
    "families/neo": Size(1.72, 2, 0.6, "its name; without the embedding 2.3 B"),
    "families/sail": Size(MISTRAL, 7, 0.5, "its name"),
    "families/solo": Size(MISTRAL, 7, 0.5, "its name"),
    "families/vora": Size(QWEN2_5, 7, 0.7, "its name; counted when merged"),
}


def full_sizes(name: str) -> list[dict[str, torch.Size]]:
    """Shapes of the parameters of a recipe's models: one, or as many as its stages describe."""
    recipe = load_recipe([name])
    parts = [_parts(recipe.resolve(stage)["model"]) for stage in list(recipe.stages) or [None]]
    different = [part for number, part in enumerate(parts) if part not in parts[:number]]
    return [{key: p.shape for key, p in empty_model(part).named_parameters()} for part in different]


def _parts(model: dict[str, Any]) -> dict[str, Any]:
    specs = {}
    for kind in ("backbone", "patch_embedder", "router"):
        cls = registry.get(kind, model[kind]["class_path"])
        specs[kind] = {"class_path": registry.place(cls), "init_args": dict(model[kind].get("init_args") or {})}
    hidden_size = empty_model({"backbone": specs["backbone"]}).backbone.hidden_size
    specs["patch_embedder"]["init_args"]["hidden_size"] = hidden_size
    return specs


def test_every_family_has_a_size() -> None:
    assert {name for name in SIZES if "/" in name} == {f"families/{name}" for name in FAMILIES}


@pytest.mark.parametrize("name", SIZES)
def test_full_size_is_the_published_one_in_every_stage(name: str) -> None:
    shapes, *others = full_sizes(name)
    assert all(other == shapes for other in others), "a stage could not start from the weights of the one before"
    published, counts = SIZES[name], {key: shape.numel() for key, shape in shapes.items()}
    total = sum(counts.values())
    visual = sum(n for key, n in counts.items() if ".visual." in key)
    new = sum(n for key, n in counts.items() if key.startswith(NEW) or "_hw" in key)
    assert visual == published.experts, "the experts"
    assert (total - visual - new) / 1e9 == pytest.approx(published.llm, abs=0.012), "the LLM"
    assert (total - visual * published.active) / 1e9 == pytest.approx(published.model, abs=published.tolerance)
    assert_says(name, total)


def assert_says(name: str, total: int) -> None:
    """The first number behind Size in the header is the number of parameters, to the digits that it gives."""
    said = re.search(r"^# Size\s+([\d.,]+)( B)? parameters", (ROOT / "recipes" / f"{name}.yaml").read_text(), re.M)
    assert said, f"{name}: the header gives no size"
    if said[2]:
        digits = len(said[1].partition(".")[2])
        assert f"{total / 1e9:.{digits}f}" == said[1], f"{total:,}"
    else:
        assert int(said[1].replace(",", "")) == total


@pytest.mark.parametrize("name", FAMILIES)
def test_the_header_says_what_it_reproduces_and_what_it_cannot(name: str) -> None:
    text = (ROOT / "recipes" / "families" / f"{name}.yaml").read_text()
    for word in HEADER:
        assert re.search(rf"^# {word} ", text, re.M), f"{name}: no line {word}"
    assert f"--config recipes/families/{name}.yaml" in text
    assert f"recipes show families/{name}" in text


@pytest.mark.parametrize("name", FAMILIES)
def test_at_toy_size_nothing_but_sizes_is_another(name: str) -> None:
    """Classes, sites, masks, positions, what trains and auxiliary losses are those of the recipe."""
    recipe = load_recipe([f"families/{name}"])
    words = (word.removeprefix("--").partition("=") for word in toy_size(recipe))
    toy = recipe.with_overrides([(key, text) for key, _, text in words])
    for stage in list(recipe.stages) or [None]:
        full, small = (dict(_leaves(r.resolve(stage)["model"])) for r in (recipe, toy))
        changed = {key for key in full.keys() | small.keys() if full.get(key) != small.get(key)}
        named = {key.rpartition(".")[2] for key in changed if not key.startswith("processor.")}
        assert named <= MAY_SHRINK, named - MAY_SHRINK


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield prefix.rstrip("."), value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{prefix}{key}.")
