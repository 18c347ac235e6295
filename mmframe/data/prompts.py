"""Rows with answers -> the prompts that ask for them: how validation rows become data for prediction."""

from __future__ import annotations

import torch

from mmframe.batch import IGNORE, Sample
from mmframe.kinds import TokenKind
from mmframe.processing import Tokenizer


class Prompt:
    """What stands before an answer of a row.

    No dataclass: Lightning would look into it and move the sample's tensors, of which `kinds` belongs on the host.

    Attributes:
        sample: the prompt, ends where the answer begins.
        text: its text.
        reference: the answer that the row has.
    """

    def __init__(self, sample: Sample, text: str, reference: str) -> None:
        self.sample, self.text, self.reference = sample, text, reference


def prompts_of(sample: Sample, tokenizer: Tokenizer) -> list[Prompt]:
    """One prompt for each supervised answer of a row; answers before it are kept as its history.

    A branch and its trunk become one plain row with the same tokens at the same positions.
    """
    supervised = sample.labels != IGNORE
    before = torch.cat([torch.zeros(1, dtype=torch.bool), supervised[:-1]])
    # the label at i is the token at i + 1, so the place where supervision begins is the last of the prompt
    starts = (supervised & ~before).nonzero().flatten().tolist()
    is_image = sample.kinds == TokenKind.IMAGE
    per_tile = int(is_image.sum()) // max(1, sample.tiles.shape[0])
    tile_of = (is_image.cumsum(0) - 1) // max(1, per_tile)
    prompts = []
    for number, start in enumerate(starts, 1):
        in_branch = (sample.branches == 0) | (sample.branches == sample.branches[start])
        keep = in_branch & (sample.docs == sample.docs[start]) & (torch.arange(len(sample)) <= start)
        end = start + int((~supervised[start:]).nonzero().flatten()[0])
        row = Sample.from_ids(
            sample.ids[keep],
            kinds=sample.kinds[keep],
            positions=sample.positions[keep],
            blocks=sample.blocks[keep],
            prefix=sample.prefix[keep],
            tiles=sample.tiles[tile_of[keep & is_image].unique()],
            key=sample.key if len(starts) == 1 else f"{sample.key}#{number}",
        )
        text = tokenizer.decode(sample.ids[keep & ~is_image].tolist()).strip()
        prompts.append(Prompt(row, text, tokenizer.decode(sample.labels[start:end].tolist()).strip()))
    return prompts
