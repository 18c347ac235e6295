"""MultimodalLM: one root module that sees and talks.

T tokens of the batch, D hidden, N visual tokens, S supervised tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmframe.batch import Batch
from mmframe.cache import KVCache
from mmframe.contracts import Backbone, ExpertRouter, PatchEmbedder
from mmframe.errors import UserError
from mmframe.experts import use_backend
from mmframe.layout import Layout


@dataclass(frozen=True)
class Output:
    """What a forward gives.

    logits  [S, V] at the positions asked for, in sequence order
    hidden  [T, D] of the last layer, before the final norm, in sequence order; only if asked for
    """

    logits: Tensor
    hidden: Tensor | None = None


class MultimodalLM(nn.Module):
    """Backbone + patch embedder + expert router. Its forward does everything, so that one root can be sharded.

    Args:
        backbone: The pretrained LLM.
        patch_embedder: Pixels -> visual tokens.
        router: Puts experts into the backbone (here, once) and plans every batch.
        expert_backend: ``torch``, ``cupy``, or ``auto``: cupy where it can run.
    """

    def __init__(
        self,
        backbone: Backbone,
        patch_embedder: PatchEmbedder,
        router: ExpertRouter,
        expert_backend: str = "auto",
    ) -> None:
        super().__init__()
        if patch_embedder.hidden_size != backbone.hidden_size:
            raise UserError(
                f"model: the patch embedder makes tokens of size {patch_embedder.hidden_size}, "
                f"the backbone takes {backbone.hidden_size}; set both hidden_size alike"
            )
        self.backbone = backbone
        self.patch_embedder = patch_embedder
        self.router = router
        router.install(backbone)
        self.expert_backend = use_backend(expert_backend)

    def embed(self, batch: Batch) -> Tensor:
        """Token embeddings with visual tokens at the image slots: [T, D], in sequence order.

        Raises:
            UserError: slots and visual tokens differ in number; names the sample and both counts.
        """
        x_TD = self.backbone.embed(batch.ids)
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
        self, batch: Batch, logits_at: Tensor | None = None, cache: KVCache | None = None, want_hidden: bool = False
    ) -> Output:
        """One pass.

        Args:
            batch: Rows; with a cache, the continuation of each row.
            logits_at: int64 [S], sequence indices; default: the supervised positions.
            cache: Keys and values of the past; is advanced.
            want_hidden: Also return the last hidden states.
        """
        if cache is not None:
            cache.begin(batch)
        x_TD = self.embed(batch)
        plan = self.router.plan(batch.kinds).to(x_TD.device)
        layout = Layout.build(batch, plan, self.backbone, x_TD.dtype, cache)
        h_TD = self.backbone(plan.sort(x_TD), plan, layout, cache)
        if cache is not None:
            cache.advance(batch)
        at = batch.supervised if logits_at is None else logits_at
        logits = self.backbone.head(h_TD.index_select(0, plan.place(at)))
        return Output(logits, plan.unsort(h_TD) if want_hidden else None)
