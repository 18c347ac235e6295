"""Rows with answers -> the prompts that ask for them: how validation rows become data for prediction."""

from __future__ import annotations

import torch

from mmframe.batch import IGNORE, Sample
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
    is_slot = sample.blocks >= 0
    prompts = []
    for number, start in enumerate(starts, 1):
        in_branch = (sample.branches == 0) | (sample.branches == sample.branches[start])
        keep = in_branch & (sample.docs == sample.docs[start]) & (torch.arange(len(sample)) <= start)
        end = start + int((~supervised[start:]).nonzero().flatten()[0])
        tiles, tile_index = sample.tile_index[keep & is_slot].unique(return_inverse=True)
        row = Sample.from_ids(
            sample.ids[keep],
            kinds=sample.kinds[keep],
            positions=sample.positions[keep],
            blocks=sample.blocks[keep],
            tile_index=sample.tile_index[keep].masked_scatter(is_slot[keep], tile_index.int()),
            tile_row=sample.tile_row[keep],
            tile_column=sample.tile_column[keep],
            tiles=sample.tiles[tiles.long()],
            key=sample.key if len(starts) == 1 else f"{sample.key}#{number}",
        )
        text = tokenizer.decode(sample.ids[keep & ~is_slot].tolist()).strip()
        prompts.append(Prompt(row, text, tokenizer.decode(sample.labels[start:end].tolist()).strip()))
    return prompts
