"""Makes a recipe of any size fit into seconds on a CPU: sizes are overridden, its structure stays.

Classes, sites, masks, positions, freezing and auxiliary losses are those of the recipe; only how wide, how deep and how
long things are is small: numbers of the components' own `toy_args`.
"""

import inspect
import re
from collections.abc import Iterator
from typing import Any

from mmframe import registry
from mmframe.cli.recipe import Recipe

RUN = [
    "--model.processor.tokenizer=ByteTokenizer",
    "--model.processor.template=plain",
    "--data={class_path: ToyData, init_args: {size: 16, batch_size: 2, val_size: 2}}",
    "--trainer.max_steps=2",
    "--trainer.accumulate_grad_batches=1",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.num_nodes=1",
    "--trainer.strategy=auto",
    "--trainer.precision=32-true",
    "--trainer.enable_progress_bar=false",
    "--trainer.limit_val_batches=1",
    "--trainer.val_check_interval=2",
]
BODY = dict(hidden_size=32, num_layers=2, num_heads=4, kv_heads=2, intermediate_size=48)
EMBEDDER = dict(image_size=32, patch_size=4, channels=16)
OVER_ALL = dict(vocab_size=320)  # of the ByteTokenizer
COUNTS = {"num_queries": 4, "pre_layers": 1}
"""Arguments that a toy has only where the recipe has them: they are structure."""
FIXED_SIZE = {"SmolLM2": f"{{class_path: Llama, init_args: {BODY | OVER_ALL}}}"}
"""Backbones of one size and no other, with their stand-ins."""


def toy_size(recipe: Recipe) -> list[str]:
    """Command line words that shrink a recipe."""
    model = recipe.common["model"]
    words = [*RUN]
    for part, sizes in (("backbone", BODY), ("patch_embedder", EMBEDDER)):
        if part not in model:  # a checkpoint brings it
            continue
        name, given = _class_of(model[part])
        if name in FIXED_SIZE:
            words.append(f"--model.{part}={FIXED_SIZE[name]}")
        else:
            words += [f"--model.{part}.{key}={value}" for key, value in _sizes(part, name, given, sizes)]
    for marker, toy in (("image_start", "<img>"), ("image_end", "</img>")):
        if _class_of(model.get("processor") or "")[1].get(marker):
            words.append(f"--model.processor.{marker}={toy}")
    words += [f"--model.{word}" for word in _beside(model)]
    for stage, overlay in recipe.stages.items():
        words += [f"--stages.{stage}.model.{word}" for word in _beside(overlay.get("model") or {})]
    return words + ["--model.init_from=null"] * bool(model.get("init_from"))  # weights of a full-size LLM


def _class_of(component: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(component, str):
        return component, {}
    return component["class_path"], component.get("init_args") or {}


def _sizes(kind: str, name: str, given: dict[str, Any], sizes: dict[str, int]) -> Iterator[tuple[str, Any]]:
    """Numbers of `sizes` that the class knows, and those of its `toy_args`: these win."""
    cls: Any = registry.get(kind, name)
    known = inspect.signature(cls).parameters
    toy = {key: value for key, value in (cls.toy_args or {}).items() if type(value) in (int, str)}
    chosen = {key: value for key, value in sizes.items() if key in known} | toy
    yield from ((key, value) for key, value in chosen.items() if key not in COUNTS)
    yield from ((key, value) for key, value in OVER_ALL.items() if key in known)
    yield from ((key, value) for key, value in COUNTS.items() if given.get(key))
    if sections := given.get("grid_sections"):  # shares of the frequencies of a head, of which a toy has fewer
        half = chosen.get("head_dim", chosen["hidden_size"] // chosen["num_heads"]) // 2
        yield "grid_sections", [share * half // sum(sections) for share in sections]
    if "model_args" in given:  # of an encoder that is not this one
        yield "model_args", "null"


def _beside(model: dict[str, Any]) -> Iterator[str]:
    """What adapters and auxiliary losses look at, in a model of two layers."""
    if _class_of(model.get("adapter") or "")[1].get("layers"):
        yield "adapter.layers='0'"
    for name, loss in (model.get("auxiliary") or {}).items():
        given = _class_of(loss)[1]
        toy = {"layers": "'0,1'"}
        if not re.fullmatch(r"-?\d+", str(given.get("teacher_layers", "-1"))):  # a block for each layer
            toy["teacher_layers"] = "'0,1'"
        if "teacher" in given:
            toy |= {"teacher": "test_vit", "pretrained": "false", "teacher_args": "{img_size: 32}"}
        yield from (f"auxiliary.{name}.{key}={value}" for key, value in toy.items())
