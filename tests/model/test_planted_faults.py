"""A test is worth what it catches: known faults are planted, and a named check must fail on each.

The checks are those that the tests of the same name run on the sound code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW

from components.backbones import decoder
from components.backbones.internlm2 import InternLM2
from components.backbones.rope import Rope
from components.freezing import delta_tuning
from components.routers.modality import ModalityRouter
from mmframe import batch as batch_file
from mmframe import layout as layout_file
from mmframe import module as module_file
from mmframe.batch import Batch, Sample
from mmframe.experts import Experts
from mmframe.freezing import FreezingReport, freeze
from mmframe.layout import Layout, _Gather
from mmframe.module import MultimodalModule
from mmframe.optim import MasterAdamW
from mmframe.plan import Plan
from tests.helpers import QKV_FFN, row
from tests.model import (
    test_attention,
    test_geometry,
    test_packing,
    test_reference,
    test_routing,
    test_training_promises,
)

Patch = pytest.MonkeyPatch
PACK = "tTTtt|t[i]tTT|tttTTT"
"""Without branches: the mask that those need would hide that documents are taken for one."""


def blend_instead_of_gather(patch: Patch) -> None:
    """Every expert runs on all tokens and the outputs are mixed with a mask of 0 and 1, as the released code does."""

    def forward(self: Experts, x_TD: Tensor, plan: Plan) -> Tensor:
        if len(self) == 1:
            return self["text"](x_TD)
        expert_T = torch.arange(len(plan.sizes)).repeat_interleave(torch.tensor(plan.sizes))
        masks = [(expert_T == e).to(x_TD.dtype)[:, None] for e in range(len(self))]
        return torch.stack([expert(x_TD) * mask for expert, mask in zip(self.values(), masks, strict=True)]).sum(0)

    patch.setattr(Experts, "forward", forward)


def guarded_expert(patch: Patch) -> None:
    """An expert without tokens is not called."""

    def forward(self: Experts, x_TD: Tensor, plan: Plan) -> Tensor:
        if len(self) == 1:
            return self["text"](x_TD)
        chunks = x_TD.split(plan.sizes)
        return torch.cat([expert(c) for expert, c in zip(self.values(), chunks, strict=True) if len(c)])

    patch.setattr(Experts, "forward", forward)


def experts_swapped(patch: Patch) -> None:
    """Text goes to the visual expert and images to the text expert."""

    def plan(self: ModalityRouter, kinds_T: Tensor) -> Plan:
        return Plan.from_experts(1 - self.expert_of_kind[kinds_T.long()], 2)

    patch.setattr(ModalityRouter, "plan", plan)


def frozen_norm_trains(patch: Patch) -> None:
    """A pattern that is a little too wide."""
    patch.setattr(delta_tuning, "EXPERTS", ["backbone.layers.*.visual.*", "backbone.layers.*.ffn_norm.text.*"])


def nothing_is_frozen(patch: Patch) -> None:
    """The report is right, but no parameter is told."""

    def lazy(model: torch.nn.Module, groups: Any) -> FreezingReport:
        report = freeze(model, groups)
        model.requires_grad_(True)
        return report

    patch.setattr(module_file, "freeze", lazy)


def causal_mask_off_by_one(patch: Patch) -> None:
    """Plain causal attention that sees one token ahead."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        if mask is None:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(diagonal=1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)

    patch.setattr(decoder, "attend", attend)


def explicit_mask_off_by_one(patch: Patch) -> None:
    """The mask of caches and branches sees one column ahead."""
    sound = layout_file.may_attend

    def shifted(*args: Any) -> Tensor:
        mask = sound(*args)
        return mask | mask.roll(1, dims=-1)

    patch.setattr(layout_file, "may_attend", shifted)


def padding_leaks_gradients(patch: Patch) -> None:
    """Padding cells hand back the gradient of the token whose place they repeat."""

    def ungrid(self: Layout, parts: list[Tensor]) -> Tensor:
        flat = torch.cat([part.flatten(0, 1) for part in parts])
        return _Gather.apply(flat, self.from_grid, self.to_grid, None)  # type: ignore[return-value]

    patch.setattr(Layout, "ungrid", ungrid)


def documents_see_one_another(patch: Patch) -> None:
    """A packed row is taken for one document."""

    def rows(samples: list[Sample], docs_T: Tensor) -> Tensor:
        return torch.arange(len(samples)).repeat_interleave(torch.tensor([len(s) for s in samples]))

    patch.setattr(batch_file, "_documents", rows)


def padding_of_a_neighbour(patch: Patch) -> None:
    """Padding cells hold the first token of the batch, whosever it is."""
    sound = layout_file._Sequences.cells

    def cells(self: layout_file._Sequences) -> tuple[list[tuple[int, int]], Tensor, Tensor]:
        shapes, token_C, is_hole_C = sound(self)
        return shapes, token_C.masked_fill(is_hole_C, 0), is_hole_C

    patch.setattr(layout_file._Sequences, "cells", cells)


def branches_weigh_as_one_sample(patch: Patch) -> None:
    """Questions that share an image count as one answer."""
    sound = Batch.collate

    def collate(samples: list[Sample]) -> Batch:
        made = sound(samples)
        document_T = torch.arange(len(made.doc_lengths)).repeat_interleave(made.doc_lengths)
        document_S = document_T[made.supervised]
        return replace(made, supervised_counts=document_S.bincount()[document_S])

    patch.setattr(Batch, "collate", collate)


def prompt_one_token_too_long(patch: Patch) -> None:
    """The first token of the answer counts as part of the prompt."""
    sound = batch_file.in_front_of

    def longer(*columns: Tensor) -> Tensor:
        inside = sound(*columns)
        return inside | inside.roll(1)

    patch.setattr(batch_file, "in_front_of", longer)


def prefix_mask_is_causal(patch: Patch) -> None:
    """The prompt sees its past alone."""
    sound = layout_file.may_attend
    patch.setattr(layout_file, "may_attend", lambda *args: sound(*args[:-1], "causal"))


def text_goes_on_after_the_number_of_slots(patch: Patch) -> None:
    """Behind an image, linear positions; within it, its grid."""
    sound = layout_file.rotary_positions

    def positions(facts: Tensor, kind: str) -> Tensor:
        return torch.where(facts[2] >= 0, sound(facts, kind), facts[3])

    patch.setattr(layout_file, "rotary_positions", positions)


def next_token_ignores_the_grid(patch: Patch) -> None:
    """A decoding step takes the next time, not the place behind the tile."""
    patch.setattr(layout_file, "next_positions", lambda positions, kind: positions + 1)


def rows_for_columns(patch: Patch) -> None:
    """Row and column of a slot change places."""
    sound = Rope.angles

    def angles(self: Rope, positions: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        return sound(self, positions[[0, 2, 1]] if len(positions) == 3 else positions, *args)

    patch.setattr(Rope, "angles", angles)


def wqkv_read_as_blocks(patch: Patch) -> None:
    """All queries, then all keys, then all values: it loads without an error."""

    def blocks(self: InternLM2, wqkv: Tensor) -> tuple[Tensor, ...]:
        kv = self.kv_heads * self.head_dim
        return wqkv.split((self.num_heads * self.head_dim, kv, kv))

    patch.setattr(InternLM2, "split_wqkv", blocks)


def one_token_means_text(patch: Patch) -> None:
    """A call of one token is taken for a decoding step."""
    sound = ModalityRouter.plan

    def plan(self: ModalityRouter, kinds_T: Tensor) -> Plan:
        return sound(self, torch.zeros_like(kinds_T) if len(kinds_T) == 1 else kinds_T)

    patch.setattr(ModalityRouter, "plan", plan)


def mean_of_micro_batch_means(patch: Patch) -> None:
    """Every micro-batch counts the same, however many supervised tokens it has."""
    patch.setattr(MultimodalModule, "_whole_batch", lambda self: True)


def masters_rounded_on_resume(patch: Patch) -> None:
    """torch's own loading casts the optimiser's state to the dtype of the parameter."""
    patch.setattr(MasterAdamW, "load_state_dict", AdamW.load_state_dict)


def poison(folder: Path) -> None:
    test_routing.check_poison(test_routing.two_experts(), "visual")


def empty_expert(folder: Path) -> None:
    test_routing.check_empty_expert(test_routing.two_experts(), empty="visual")


def text_preserved(folder: Path) -> None:
    test_routing.check_text_preserved(QKV_FFN)


def frozen_bits(folder: Path) -> None:
    test_training_promises.check_frozen("VisualParameters")


def causal(folder: Path) -> None:
    test_attention.check_causal("causal")


def pieces(folder: Path) -> None:
    test_attention.check_pieces(test_attention.make(), [11, 18])


def padding_gradients(folder: Path) -> None:
    test_attention.test_padding_cells_add_nothing_to_gradients()


def isolated(folder: Path) -> None:
    test_packing.check_isolated(test_packing.make("causal"), row(PACK), choice=0)


def packed(folder: Path) -> None:
    test_packing.check_packed(test_packing.make("causal"), row(PACK))


def poisoned_documents(folder: Path) -> None:
    test_packing.check_poison("causal")


def weights_of_tokens(folder: Path) -> None:
    test_training_promises.test_a_token_weighs_what_its_sample_says()


def single_slot(folder: Path) -> None:
    test_attention.test_a_piece_of_a_single_slot_goes_to_the_visual_expert()


def prompts_seen(folder: Path) -> None:
    test_geometry.check_prefix("t[i]ttTTtTT")


def grid_pieces(folder: Path) -> None:
    test_geometry.check_pieces(test_attention.make(positions="grid"))


def grid_steps(folder: Path) -> None:
    test_geometry.check_steps(test_attention.make(positions="grid"))


def grid_places(folder: Path) -> None:
    test_geometry.check_places()


def reference_logits(folder: Path) -> None:
    test_reference.check_one_image_logits()


def split(folder: Path) -> None:
    test_training_promises.check_split([[0, 1], [2, 3]])


def resume(folder: Path) -> None:
    test_training_promises.check_masters_survive(folder)


Check = Callable[[Path], None]
CAUGHT_BY: list[tuple[Callable[[Patch], None], Check]] = [
    (blend_instead_of_gather, poison),
    (guarded_expert, empty_expert),
    (experts_swapped, text_preserved),
    (experts_swapped, reference_logits),
    (frozen_norm_trains, frozen_bits),
    (frozen_norm_trains, text_preserved),
    (nothing_is_frozen, frozen_bits),
    (causal_mask_off_by_one, causal),
    (causal_mask_off_by_one, reference_logits),
    (explicit_mask_off_by_one, pieces),
    (padding_leaks_gradients, padding_gradients),
    (documents_see_one_another, isolated),
    (documents_see_one_another, packed),
    (padding_of_a_neighbour, poisoned_documents),
    (branches_weigh_as_one_sample, weights_of_tokens),
    (prompt_one_token_too_long, prompts_seen),
    (prefix_mask_is_causal, prompts_seen),
    (explicit_mask_off_by_one, prompts_seen),
    (text_goes_on_after_the_number_of_slots, grid_pieces),
    (next_token_ignores_the_grid, grid_steps),
    (rows_for_columns, grid_places),
    (wqkv_read_as_blocks, reference_logits),
    (one_token_means_text, single_slot),
    (mean_of_micro_batch_means, split),
    (masters_rounded_on_resume, resume),
]


@pytest.mark.parametrize(("fault", "check"), CAUGHT_BY, ids=lambda function: function.__name__)
def test_a_planted_fault_is_caught(
    fault: Callable[[Patch], None], check: Check, monkeypatch: Patch, tmp_path: Path
) -> None:
    check(tmp_path)  # sound code passes, so that the failure below is the fault's
    torch.manual_seed(0)
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check(tmp_path)
