"""What both halves of the pair cost at inference: prefill, first token, decoding, memory. Ratios within one run."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from experiments.bench.allocations import peak_bytes
from experiments.bench.first_token import first_token
from experiments.bench.timing import compare, ratio
from mmframe import registry
from mmframe.batch import Batch, Sample
from mmframe.cli.lightning_cli import qualify
from mmframe.cli.recipe import load_recipe
from mmframe.flops import FlopCounter
from mmframe.kinds import TokenKind
from mmframe.loading import build
from mmframe.model import MultimodalLM

RECIPES = Path(__file__).parent / "recipes"
HALVES = ("monolithic", "modular")
PICTURES = {"one tile": 1, "seven tiles": 7}
TEXT = 32
"""Tokens of the question."""


def net_of(half: str, device: torch.device) -> MultimodalLM:
    """The model of a recipe with the weights that it starts from; what is new in it is random, which costs the same."""
    registry.discover()
    recipe = load_recipe([str(RECIPES / f"{half}.yaml")])
    model = qualify(recipe.resolve([None, *recipe.stages][-1]))["model"]
    backbone = build(model["backbone"])
    embedder = model["patch_embedder"]
    arguments = {**embedder.get("init_args", {}), "hidden_size": backbone.hidden_size}
    net = MultimodalLM(backbone, build({**embedder, "init_args": arguments}), build(model["router"]), "torch")
    return net.float().requires_grad_(False).eval().to(device)


def prompt(net: MultimodalLM, tiles: int, text: int = TEXT) -> Sample:
    """A picture of `tiles` tiles of noise, and text after it."""
    embedder = net.patch_embedder
    assert embedder is not None
    side = embedder.image_size
    generator = torch.Generator().manual_seed(0)
    slots = tiles * embedder.num_tokens(side, side)
    kinds = [int(TokenKind.IMAGE)] * slots + [int(TokenKind.TEXT)] * text
    ids = torch.randint(3, net.backbone.vocab_size, (len(kinds),), generator=generator)
    return Sample.from_ids(ids, kinds=kinds, tiles=torch.randn(tiles, 3, side, side, generator=generator))


@torch.no_grad()
def prefill_flops(net: MultimodalLM, sample: Sample) -> int:
    """Operations of a prompt up to its first token."""
    batch = Batch.collate([sample]).to(next(net.parameters()).device)
    with FlopCounter() as counter:
        net(batch, logits_at=torch.tensor([batch.num_tokens - 1], device=batch.ids.device))
    return counter.total


@torch.no_grad()
def working_memory(net: MultimodalLM, sample: Sample) -> float:
    """The most that a prompt takes up to its first token, its cache included and the weights not, MiB."""
    device = next(net.parameters()).device
    return round(peak_bytes(lambda: first_token(net, sample), device) / 2**20, 2)


@torch.no_grad()
def measure(rounds: int = 9, tokens: int = 24) -> dict[str, Any]:
    """Figures of both halves, taking turns.

    Args:
        rounds: Of every timing.
        tokens: Decoded in a round.

    Returns:
        Of each half: parameters, bytes of weights, and for each size of picture FLOPs of the prefill, its memory beyond
        the weights, seconds to the first token, tokens per second of decoding after it; and the ratios modular over
        monolithic, round by round.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nets = {half: net_of(half, device) for half in HALVES}
    figures: dict[str, Any] = {half: _sizes(net) for half, net in nets.items()}
    for name, tiles in PICTURES.items():
        found, over = _timed(nets, {half: prompt(net, tiles) for half, net in nets.items()}, rounds, tokens)
        for half in HALVES:
            figures[half][name] = found[half]
        figures.setdefault("modular over monolithic, seconds", {})[name] = over
    return figures


def _timed(
    nets: dict[str, MultimodalLM], samples: dict[str, Sample], rounds: int, tokens: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of each half for one prompt, and the ratios."""
    steps = {half: first_token(nets[half], samples[half], tokens) for half in HALVES}

    def decode(half: str) -> None:
        steps[half].cache.truncate([len(samples[half])])
        ids = [1]
        for _ in range(tokens):
            ids = steps[half](ids).argmax(-1).tolist()

    first = compare({half: lambda half=half: first_token(nets[half], samples[half]) for half in HALVES}, rounds)
    decoding = compare({half: lambda half=half: decode(half) for half in HALVES}, rounds)
    found = {
        half: {
            "prompt tokens": len(samples[half]),
            "prefill FLOPs": prefill_flops(nets[half], samples[half]),
            "MiB beyond the weights": working_memory(nets[half], samples[half]),
            "seconds to first token": round(statistics.median(first[half]), 5),
            "tokens per second": round(tokens / statistics.median(decoding[half]), 2),
        }
        for half in HALVES
    }
    ratios = {"first token": ratio(first, *HALVES[::-1]), "a decoded token": ratio(decoding, *HALVES[::-1])}
    return found, ratios


def _sizes(net: MultimodalLM) -> dict[str, Any]:
    parameters = list(net.parameters())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "GiB of weights": round(sum(p.numel() * p.element_size() for p in parameters) / 2**30, 3),
    }
