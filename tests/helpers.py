"""Small builders: a model of a few thousand weights, rows written as patterns, a trainer that says nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchdata.stateful_dataloader import StatefulDataLoader

from components.backbones.internlm2 import InternLM2
from components.backbones.llama import Llama
from components.freezing.delta_tuning import VisualParameters
from components.patch_embedders.mono import MonoPatchEmbedder
from components.routers.modality import ModalityRouter, SharedRouter
from mmframe.batch import IGNORE, Batch, Sample
from mmframe.checkpoints import TensorLink
from mmframe.contracts import SITES, AuxiliaryLoss, Backbone, ExpertRouter, FreezingPolicy, Objective
from mmframe.kinds import TokenKind
from mmframe.model import MultimodalLM
from mmframe.module import MultimodalModule
from mmframe.optim import AdamWSchedule
from mmframe.processing import ByteTokenizer, ChatProcessor
from mmframe.weights import load_weights

HIDDEN, VOCAB, IMAGE_SIZE, TOKENS_PER_TILE = 32, 64, 8, 4
ALL_SITES: dict[str, str] = {site: "all" for site in SITES if site not in ("q_norm", "k_norm")}
QKV_FFN: dict[str, str] = dict.fromkeys(("q", "k", "v", "ffn"), "all")
"""Sites of Mono-InternVL-1.5."""


def tiny_llama(**changes: Any) -> Llama:
    sizes: dict[str, Any] = dict(
        hidden_size=HIDDEN, num_layers=3, num_heads=4, kv_heads=2, intermediate_size=48, vocab_size=VOCAB
    )
    return Llama(**(sizes | changes))


def tiny_internlm2(**changes: Any) -> InternLM2:
    sizes: dict[str, Any] = dict(
        hidden_size=HIDDEN, num_layers=3, num_heads=4, kv_heads=2, intermediate_size=48, vocab_size=VOCAB
    )
    return InternLM2(**(sizes | changes))


def tiny_embedder(**changes: Any) -> MonoPatchEmbedder:
    """8 px tiles, 4 tokens each."""
    sizes: dict[str, Any] = dict(hidden_size=HIDDEN, image_size=IMAGE_SIZE, patch_size=2, channels=8)
    return MonoPatchEmbedder(**(sizes | changes))


@torch.no_grad()
def roughen(module: nn.Module, seed: int = 0, std: float = 0.2) -> None:
    """Weights large enough that every part of a tiny model has a say in its output."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm_scale = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.1 * noise if is_norm_scale else std * noise)


def tiny_net(
    experts_at: Mapping[str, str] | None = None,
    *,
    backbone: Backbone | None = None,
    router: ExpertRouter | None = None,
    init: str = "copy",
    distinct: bool = False,
    image_size: int = IMAGE_SIZE,
) -> MultimodalLM:
    """A model with rough weights; the text weights depend on nothing but the backbone's sizes.

    Args:
        experts_at: Sites of the modality router, default the FFN of all layers; {} gives a dense model.
        backbone: Default a tiny Llama.
        router: In place of `experts_at`.
        init: How visual experts start.
        distinct: Give visual experts weights of their own afterwards.
        image_size: Edge of a tile.
    """
    backbone = tiny_llama() if backbone is None else backbone
    embedder = tiny_embedder(image_size=image_size)
    roughen(backbone, seed=1)
    roughen(embedder, seed=2)
    if router is None:
        sites = {"ffn": "all"} if experts_at is None else dict(experts_at)
        router = ModalityRouter(sites, init=init) if sites else SharedRouter()
    net = MultimodalLM(backbone, embedder, router, expert_backend="torch").eval()
    if distinct:
        visual = nn.ModuleList(experts["visual"] for _, _, experts in backbone.sites() if "visual" in experts)
        roughen(visual, seed=3)
    return net


def row(pattern: str, seed: int = 0, key: str | None = None, image_size: int = IMAGE_SIZE, per_tile: int = 4) -> Sample:
    """A row of random ids and pixels, one character a piece:

    t  text                 i  one tile; neighbours are tiles of one image    |  a new document
    T  text, supervised     [ ] boundary tokens      q  a query of its image  /  a new branch of the document
    """
    generator = torch.Generator().manual_seed(seed)
    kinds, positions, docs, branches, blocks, targets = [], [], [], [], [], []
    tile_row, tile_column, side = [], [], math.isqrt(per_tile)
    doc = branch = position = trunk_end = tiles = 0
    image = -1
    before = ""
    for piece in pattern:
        if piece == "|":
            doc, branch, position, trunk_end = doc + 1, 0, 0, 0
        elif piece == "/":
            trunk_end = trunk_end if branch else position
            branch, position = branch + 1, trunk_end
        else:
            count = per_tile if piece == "i" else 1
            image += piece == "i" and before != "i"
            tiles += piece == "i"
            kind = {"i": TokenKind.IMAGE, "[": TokenKind.BOUNDARY, "]": TokenKind.BOUNDARY, "q": TokenKind.QUERY}
            kinds += [kind.get(piece, TokenKind.TEXT)] * count
            positions += range(position, position + count)
            docs += [doc] * count
            branches += [branch] * count
            blocks += [image if piece in "iq" else -1] * count
            places = [divmod(place, side) for place in range(count)] if piece == "i" else [(-1, -1)] * count
            tile_row += [place[0] for place in places]
            tile_column += [place[1] for place in places]
            targets += [piece == "T"] * count
            position += count
        before = piece
    ids = torch.randint(3, VOCAB, (len(kinds),), generator=generator)
    is_target = torch.tensor(targets + [False])[1:]
    return Sample.from_ids(
        ids,
        kinds=kinds,
        positions=positions,
        docs=docs,
        branches=branches,
        blocks=blocks,
        labels=torch.where(is_target, ids.roll(-1), IGNORE),
        tile_row=tile_row,
        tile_column=tile_column,
        tiles=torch.randn(tiles, 3, image_size, image_size, generator=generator) if tiles else None,
        key=pattern if key is None else key,
    )


def batch(*patterns: str, seed: int = 0) -> Batch:
    return Batch.collate([row(pattern, seed=seed + i) for i, pattern in enumerate(patterns)])


def mixed_batch(seed: int = 0) -> Batch:
    """A text-only row, an image in the middle, two images of which one has two tiles, a row that opens with one."""
    return batch("tttTTT", "tt[i]ttTTTT", "t[ii]tTT[i]tTT", "[i]TT", seed=seed)


@torch.no_grad()
def all_logits(net: MultimodalLM, given: Batch | Sample, **options: Any) -> Tensor:
    """Logits [T, V] at every position."""
    given = Batch.collate([given]) if isinstance(given, Sample) else given
    return net(given, logits_at=torch.arange(given.num_tokens), **options).logits


@torch.no_grad()
def all_hidden(net: MultimodalLM, given: Batch | Sample) -> Tensor:
    """Last hidden states [T, D]."""
    given = Batch.collate([given]) if isinstance(given, Sample) else given
    hidden = net(given, want_hidden=True).hidden
    assert hidden is not None
    return hidden


def loss_and_gradients(net: nn.Module, given: Batch) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Mean loss over the batch's supervised tokens and the gradient of each trainable parameter."""
    from mmframe.objectives import NextToken

    net.zero_grad(set_to_none=True)
    total, weight = NextToken()(net, given)
    loss = total / weight.clamp(min=1e-8)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in net.named_parameters() if p.requires_grad}


def tiny_module(
    experts_at: Mapping[str, str] | None = None,
    *,
    freezing: FreezingPolicy | None = None,
    optim: AdamWSchedule | None = None,
    objective: Objective | None = None,
    init_from: str | None = None,
    init: str = "copy",
    router: ExpertRouter | None = None,
    auxiliary: dict[str, AuxiliaryLoss] | None = None,
    module_class: type[MultimodalModule] = MultimodalModule,
) -> MultimodalModule:
    """A training module with rough weights; default: EViP's first stages over FFN experts."""
    backbone, embedder = tiny_llama(), tiny_embedder()
    roughen(backbone, seed=1)
    roughen(embedder, seed=2)
    sites = {"ffn": "all"} if experts_at is None else dict(experts_at)
    return module_class(
        backbone=backbone,
        patch_embedder=embedder,
        router=router or (ModalityRouter(sites, init=init) if sites else SharedRouter()),
        freezing=freezing or VisualParameters(embedder_lr=1e-2, experts_lr=1e-2),
        processor=ChatProcessor(ByteTokenizer()),
        optim=optim or AdamWSchedule(warmup_steps=1, schedule="constant", weight_decay=0.1),
        objective=objective,
        init_from=init_from,
        auxiliary=auxiliary,
        expert_backend="torch",
    )


class Recording(MultimodalModule):
    """Keeps the gradients with which the optimiser steps."""

    recorded: list[dict[str, Tensor]]

    def on_fit_start(self) -> None:
        self.recorded = []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        gradients = {n.removeprefix("net."): p.grad.clone() for n, p in self.named_parameters() if p.grad is not None}
        self.recorded.append(gradients)


def fit(
    module: MultimodalModule, batches: Sequence[Batch], ckpt_path: Path | None = None, **options: Any
) -> pl.Trainer:
    """Runs the real Trainer over ready-made micro-batches, once; or what is left of it after a checkpoint."""
    settings: dict[str, Any] = dict(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer = pl.Trainer(**(settings | options))
    trainer.fit(module, StatefulDataLoader(list(batches), batch_size=None), ckpt_path=ckpt_path)  # type: ignore[arg-type]
    return trainer


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def differing(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """Names whose tensors are not equal to the last bit."""
    assert set(before) == set(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


def shares(names: Iterable[str], part: str) -> set[str]:
    return {name for name in names if part in name}


def official_links(net: MultimodalLM, prefix: str = "language_model.") -> list[TensorLink]:
    """Official tensors of an InternVL-like checkpoint <-> parameters of the whole model."""
    links = [link.within(prefix, "backbone.") for link in net.backbone.tensor_map()]  # type: ignore[operator]
    return links + [link.within("", "patch_embedder.") for link in net.patch_embedder.tensor_map()]  # type: ignore


def load_official(net: MultimodalLM, state: Mapping[str, Tensor], prefix: str = "language_model.") -> None:
    """Every official tensor into the model; each side is named by the links exactly once."""
    links = official_links(net, prefix)
    assert sorted(link.theirs for link in links) == sorted(state)
    ours = [pair for link in links for pair in link.to_ours(state[link.theirs]).items()]
    assert len(ours) == len(dict(ours)) and load_weights(net, dict(ours)) == []
