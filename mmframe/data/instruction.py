"""InstructionData: conversations of the user's own about images, as LLaVA writes them."""

from __future__ import annotations

from typing import Literal

from mmframe.data.conversation import ConversationData
from mmframe.registry import register


@register("data")
class InstructionData(ConversationData):
    """Conversations of your own about images, as LLaVA writes them: for fine-tuning.

    Files are JSONL or a JSON list. A record is {"id", "image": path or list, "conversations": [{"from": "human",
    "value": "<image>\\nWhat ...?"}, {"from": "gpt", "value": "..."}, ...]}; without "image" it is text; other keys are
    ignored. Each record is seen once in an epoch, in an order that is a function of (seed, epoch, index).

    Args:
        annotations: The file, or several.
        image_folder: What "image" is relative to; null: the folder of the file.
        val: Files for validation; all of their records, in order.
        batch_size: Rows of a batch, for each device.
        val_batch_size: The same in validation; null takes batch_size.
        max_tiles: Most tiles of a record's images, shared evenly, thumbnails not counted.
        max_tokens: Most tokens of a record, image slots and template included; null for no limit. The lengths of all
            records are counted before training starts, from text and picture headers; nothing is truncated.
        too_long: What to do about a longer record: error, or skip it and say how many were.
        seed: Of the order.
        num_workers: Loader processes; 0 loads in the training process.
        cache_mb: Decoded images are kept in memory up to this size, for each process.
    """

    def __init__(
        self,
        annotations: str | list[str],
        image_folder: str | None = None,
        val: str | list[str] | None = None,
        batch_size: int = 8,
        val_batch_size: int | None = None,
        max_tiles: int = 6,
        max_tokens: int | None = 2048,
        too_long: Literal["error", "skip"] = "error",
        seed: int = 0,
        num_workers: int = 0,
        cache_mb: int = 256,
    ) -> None:
        super().__init__(
            train=annotations,
            val=val,
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            max_tiles=max_tiles,
            seed=seed,
            num_workers=num_workers,
            cache_mb=cache_mb,
            image_folder=image_folder,
            max_tokens=max_tokens,
            too_long=too_long,
        )
