"""MixtureData: records of many sources, mixed, packed into rows and taken up again exactly after a kill."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Dict, List, Optional, Union  # noqa: UP035  jsonargparse reads these as they stand

import numpy as np

from mmframe.contracts import PatchEmbedder
from mmframe.data.base import MultimodalData
from mmframe.data.encoding import Encoder
from mmframe.data.epoch_plan import EpochPlan, RowShape
from mmframe.data.lengths_table import lengths_of
from mmframe.data.mix import Mix
from mmframe.data.mixture_rows import MixtureRows, Part
from mmframe.data.prompt_sets import prompts_named
from mmframe.data.quarantine import TOO_LONG, Bad, Quarantine
from mmframe.data.source import Source
from mmframe.errors import UserError
from mmframe.processing import ChatProcessor
from mmframe.registry import register


@register("data")
class MixtureData(MultimodalData):
    """Records of many sources, mixed and packed into rows; the way of a billion pairs and of instruction mixtures.

    The length of every record is measured once, from its text and the headers of its pictures, and kept in the cache
    folder; from lengths each epoch is planned before anything is decoded: which records share a row, and in which
    order rows come, as a pure function of (seed, epoch). `mmframe data plan RECIPE` prints it. Records in one row are
    isolated from one another: attention, positions and labels.

    A record that cannot be learnt from is never replaced, truncated or given a loss of zero: it is left out, counted
    in the logs and written with its reason into quarantine.jsonl of the run.

    Args:
        sources: The sources by name, with their repeats, image budgets and prompts.
        val: Sources for validation; all records in order, one a row.
        max_tokens: Most tokens of a row, and of a record: a longer one is left out.
        packing: Several records share a row; false: a row for each.
        length_groups: Without packing, so many rows (those of a step on all devices) are of like length; 1: as mixed.
        max_tiles: Most tiles of a record's pictures, shared evenly, thumbnails not counted; a source can have its own.
        prompts: What is asked where a record has a caption alone: a list of texts, or the name of a set (none,
            describe, read); a source can have its own.
        temperature: 1 mixes in proportion to records times repeats, 2 by the square root of that, and so on; an epoch
            keeps its number of records.
        max_bad_fraction: More bad records than this end the run. Records that are merely too long do not count.
        allow_other_data: Lets a killed run go on although its data is not that of the checkpoint.
        batch_size: Rows of a batch, for each device.
        val_batch_size: The same in validation; null takes batch_size.
        seed: Of the order and of everything drawn.
        num_workers: Loader processes; 0 loads in the training process. As many measure the lengths.
    """

    def __init__(
        self,
        sources: Dict[str, Source],  # noqa: UP006
        val: Optional[Dict[str, Source]] = None,  # noqa: UP006
        max_tokens: int = 4096,
        packing: bool = True,
        length_groups: int = 1,
        max_tiles: int = 6,
        prompts: Union[str, List[str]] = "none",  # noqa: UP006
        temperature: float = 1.0,
        max_bad_fraction: float = 0.01,
        allow_other_data: bool = False,
        batch_size: int = 1,
        val_batch_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, val_batch_size, seed, num_workers)
        if not sources:
            raise UserError("data: sources is empty; name at least one")
        if min(max_tokens, max_tiles, length_groups) < 1 or temperature <= 0 or not 0 <= max_bad_fraction <= 1:
            raise UserError(
                f"data: max_tokens={max_tokens}, max_tiles={max_tiles}, length_groups={length_groups} must be at least "
                f"1, temperature={temperature:g} above 0 and max_bad_fraction={max_bad_fraction:g} in 0..1"
            )
        self.sources, self.val_sources = sources, val or {}
        self.row_shape = RowShape(max_tokens, packing, 1 if packing else length_groups)
        self.max_tiles, self.prompts, self.temperature = max_tiles, prompts, temperature
        self.max_bad_fraction, self.allow_other_data = max_bad_fraction, allow_other_data
        self.quarantine = Quarantine(max_bad_fraction, 0)
        self.fresh = False  # measure again, whatever the cache holds

    def prepare_data(self) -> None:
        """Measures and plans in one process of each machine; the others read the result."""
        self.setup("fit")

    def setup(self, stage: str) -> None:
        if self.train_rows is None and self.trainer is not None and self.trainer.is_global_zero:
            self.quarantine.open(Path(self.trainer.default_root_dir))
        super().setup(stage)
        if self.trainer is not None:
            self.quarantine.open(Path(self.trainer.default_root_dir))  # on every rank, for what decoding finds

    def build(self, processor: ChatProcessor, embedder: PatchEmbedder) -> tuple[MixtureRows, MixtureRows | None]:
        encoder = Encoder(processor, embedder)
        validation = None
        if self.val_sources:
            shape = RowShape(self.row_shape.tokens, packing=False)
            validation = self._rows(self.val_sources, encoder, shape, None, "val/")
        training = self._rows(self.sources, encoder, self.row_shape, self.seed, "")
        self.quarantine.total = len(training.plan.mix)
        return training, validation

    def _rows(
        self, given: Mapping[str, Source], encoder: Encoder, shape: RowShape, seed: int | None, prefix: str
    ) -> MixtureRows:
        parts = [self._part(prefix + name, source, encoder) for name, source in _flat(given).items()]
        good, bad = [], []
        for part in parts:
            fine, out = usable(part, shape.tokens)
            good.append(fine)
            bad += out
        total = sum(len(part.source) for part in parts)
        self.quarantine.planned(bad, total)
        if not sum(g if isinstance(g, int) else len(g) for g in good):
            raise UserError(f"data: none of the {total:,} records can be used ({self.quarantine.told()})")
        mix = Mix(good, [part.source.repeat for part in parts], 1.0 if seed is None else self.temperature, seed)
        plan = EpochPlan(mix, [part.lengths for part in parts], [part.extra for part in parts], shape)
        plan.rows(0)
        return MixtureRows(parts, plan, encoder)

    def _part(self, name: str, source: Source, encoder: Encoder) -> Part:
        source.open()
        max_tiles = source.max_tiles or self.max_tiles
        prompts = prompts_named(self.prompts if source.prompts is None else source.prompts)
        lengths = lengths_of(
            source, encoder, max_tiles, prompts[0], max(1, self.num_workers), self.fresh, self._say, name
        )
        tokens = np.array([encoder.prompt_tokens(prompt) for prompt in prompts], dtype=np.int64)
        return Part(name, source, max_tiles, prompts, lengths, tokens - tokens[0])

    @staticmethod
    def _say(text: str) -> None:
        print(text, flush=True)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        if hasattr(batch, "left_out"):  # not the prompts of prediction
            self.quarantine.add(batch.left_out, batch.num_records)
        return batch

    @property
    def num_bad(self) -> int:
        """Records that turned out to be unusable while they were read, on this rank, over the whole run."""
        return self.quarantine.bad

    def state_dict(self) -> dict[str, Any]:
        return {"quarantine": self.quarantine.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.quarantine.load_state_dict(state_dict["quarantine"])


def usable(part: Part, limit: int) -> tuple[np.ndarray | int, list[Bad]]:
    """The records of a source that can be learnt from (their number, if all can), and the others."""
    lengths = part.lengths
    most = lengths.tokens + lengths.caption * part.extra.max()
    bad = [Bad(part.name, index, reason, message) for index, (reason, message) in lengths.bad.items()]
    long = np.flatnonzero(most > limit)
    bad += [
        Bad(
            part.name,
            int(index),
            TOO_LONG,
            f"record {index} of {part.name} has {most[index]:,} tokens ({lengths.tiles[index]} "
            f"tiles), more than max_tokens={limit:,}",
        )
        for index in long
    ]
    if not bad:
        return len(lengths.tokens), []
    out = np.zeros(len(lengths.tokens), dtype=bool)
    out[[each.record for each in bad]] = True
    return np.flatnonzero(~out), bad


def _flat(given: Mapping[str, Source]) -> dict[str, Source]:
    """Sources that list others (meta files) are replaced by those."""
    flat: dict[str, Source] = {}
    for name, source in given.items():
        parts = source.parts()
        found = {name: source} if parts is None else {f"{name}/{inner}": part for inner, part in parts.items()}
        flat |= found
    return flat
