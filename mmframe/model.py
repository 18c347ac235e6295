"""MultimodalLM: one root module that sees and talks.

T tokens of the batch, D hidden, N visual tokens, S supervised tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmframe.batch import Batch
from mmframe.cache import KVCache
from mmframe.chunked_loss import chunked_cross_entropy
from mmframe.contracts import Backbone, ExpertRouter, PatchEmbedder
from mmframe.errors import UserError
from mmframe.expert_backends import ExpertBackend, use_backend
from mmframe.experts import Experts
from mmframe.layout import Layout
from mmframe.objectives import cross_entropy


@dataclass(frozen=True)
class Output:
    """What a forward gives.

    logits  [S, V] at the positions asked for, in sequence order; none where the loss was asked for
    hidden  [T, D] of the last layer, before the final norm, in sequence order; only if asked for
    cross_entropy  fp32 [S] of the labels at the supervised positions; only if asked for
    """

    logits: Tensor
    hidden: Tensor | None = None
    cross_entropy: Tensor | None = None


class MultimodalLM(nn.Module):
    """Backbone + patch embedder + expert router. Its forward does everything, so that one root can be sharded.

    Args:
        backbone: The pretrained LLM.
        patch_embedder: Pixels -> visual tokens; None is an LLM that reads text only.
        router: Puts experts into the backbone (here, once) and plans every batch.
        expert_backend: ``torch``, ``cupy`` (fused kernels, CUDA), or ``auto``: cupy where it was measured to be faster.
    """

    def __init__(
        self,
        backbone: Backbone,
        patch_embedder: PatchEmbedder | None,
        router: ExpertRouter,
        expert_backend: str = "auto",
    ) -> None:
        super().__init__()
        if patch_embedder is not None and patch_embedder.hidden_size != backbone.hidden_size:
            raise UserError(
                f"model: the patch embedder makes tokens of size {patch_embedder.hidden_size}, "
                f"the backbone takes {backbone.hidden_size}; set both hidden_size alike"
            )
        self.backbone = backbone
        self.patch_embedder = patch_embedder
        self.router = router
        router.install(backbone)
        self.use_expert_backend(use_backend(expert_backend))

    def use_expert_backend(self, backend: ExpertBackend) -> None:
        """Makes all sites run by this backend."""
        self.expert_backend = backend
        for module in self.backbone.modules():
            if isinstance(module, Experts):
                module.backend = backend

    def embed(self, batch: Batch, skip_idle: bool = False) -> Tensor:
        """Token embeddings with visual tokens at the image slots: [T, D], in sequence order.

        Args:
            batch: Rows with their tiles.
            skip_idle: Do not call the patch embedder where there are no tiles. Never in training, where ranks wait
                for one another and gradients must be zero, not missing.

        Raises:
            UserError: slots and visual tokens differ in number; names the sample and both counts.
        """
        x_TD = self.backbone.embed(batch.ids)
        num_tiles = batch.tiles.shape[0]
        if self.patch_embedder is None and num_tiles:
            key = next(key for key, tiles in zip(batch.keys, batch.row_tiles, strict=True) if tiles)
            raise UserError(f"sample {key!r}: an image was given, but the model has no patch embedder")
        if self.patch_embedder is None or (skip_idle and not num_tiles):
            if batch.image_slots.numel():
                raise UserError(self._mismatch(batch, 0))
            return x_TD
        visual_ND = self.patch_embedder(batch.tiles)
        if visual_ND.shape[0] != batch.image_slots.numel():
            raise UserError(self._mismatch(batch, visual_ND.shape[0]))
        return x_TD.index_put((batch.image_slots,), visual_ND.to(x_TD.dtype))

    def _mismatch(self, batch: Batch, visual_tokens: int) -> str:
        per_tile = visual_tokens // max(1, batch.tiles.shape[0])
        first = 0
        slots = torch.zeros(batch.num_tokens, dtype=torch.int64)
        slots[batch.image_slots.cpu()] = 1
        for key, length, tiles in zip(batch.keys, batch.row_lengths, batch.row_tiles, strict=True):
            have = int(slots[first : first + length].sum())
            if have != tiles * per_tile:
                return (
                    f"sample {key!r}: {have} image slots in the text, {tiles * per_tile} visual tokens "
                    f"({tiles} tiles x {per_tile}); the prompt and the images do not belong together"
                )
            first += length
        return f"batch: {batch.image_slots.numel()} image slots, {visual_tokens} visual tokens"

    def forward(
        self,
        batch: Batch,
        logits_at: Tensor | None = None,
        cache: KVCache | None = None,
        want_hidden: bool = False,
        embedded_TD: Tensor | None = None,
        chunk: int | None = None,
    ) -> Output:
        """One pass.

        Args:
            batch: Rows; with a cache, the continuation of each row.
            logits_at: int64 [S], sequence indices; default: the supervised positions.
            cache: Keys and values of the past; is advanced. It means generation: nothing idle is called.
            want_hidden: Also return the last hidden states.
            embedded_TD: What `embed` made of these tokens before, e.g. of a prompt that comes in pieces; the
                batch's tiles are then not looked at.
            chunk: Give the cross entropy of the batch's labels in place of logits, which then exist for so many
                positions at a time. It is computed in here because a sharded model has its weights only in here.
        """
        generating = cache is not None
        if cache is not None:
            cache.begin(batch)
        x_TD = self.embed(batch, skip_idle=generating) if embedded_TD is None else embedded_TD
        plan = self.router.plan(batch.kinds).to(x_TD.device)
        plan = plan.without_idle() if generating else plan
        layout = Layout.build(batch, plan, self.backbone, x_TD.dtype, cache)
        h_TD = self.backbone(plan.sort(x_TD), plan, layout, cache)
        if cache is not None:
            cache.advance(batch)
        if chunk is not None:
            h_SD = h_TD.index_select(0, plan.place(batch.supervised))
            labels_S = batch.labels[batch.supervised]
            ce_S = chunked_cross_entropy(self.backbone.head, h_SD, labels_S, chunk, cross_entropy)
            return Output(h_SD.new_empty(0, self.backbone.vocab_size), cross_entropy=ce_S)
        at = batch.supervised if logits_at is None else logits_at
        logits = self.backbone.head(h_TD.index_select(0, plan.place(at)))
        return Output(logits, plan.unsort(h_TD) if want_hidden else None)
