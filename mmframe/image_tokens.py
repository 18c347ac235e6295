"""The nine tokens that InternVL adds to a text LLM: in its tokenizer, its embedding and its head.

The released code gives new rows of the head the mean of the old rows and leaves those of the embedding at a random
start; here both are the mean, so that an import is the same every time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmframe.errors import UserError
from mmframe.loading import build, resolve_paths
from mmframe.processing.sentencepiece import INTERNVL_MARKERS

if TYPE_CHECKING:
    from mmframe.convert import Import

ROWS = ("backbone.embedding.weight", "backbone.output.weight")
"""Parameters with one row a token."""


def with_image_tokens(made: Import, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Gives an import the tokens, and markers around images to its processor; returns its tensors.

    Args:
        made: Import of a text LLM.
        folder: Holds its tokenizer's files.

    Raises:
        UserError: no text LLM, one without a tokenizer, or one that has the tokens already.
    """
    processor = made.parts["processor"]
    if made.parts["patch_embedder"] is not None or processor is None:
        raise UserError(
            "--image-tokens: is for a text LLM with its tokenizer; "
            + (
                "this model sees already"
                if made.parts["patch_embedder"]
                else f"{made.source.name} has no tokenizer that we read"
            )
        )
    tokenizer = processor["init_args"]["tokenizer"]
    has = set(INTERNVL_MARKERS) & set(build(resolve_paths(tokenizer, folder)).specials)
    if has:
        raise UserError(f"--image-tokens: the tokenizer has {', '.join(sorted(has))} already; import it without")
    tokenizer["init_args"]["add_markers"] = list(INTERNVL_MARKERS)
    processor["init_args"] |= {"image_start": INTERNVL_MARKERS[0], "image_end": INTERNVL_MARKERS[1]}
    grown = build(resolve_paths(tokenizer, folder))
    first, last = grown.special_id(INTERNVL_MARKERS[0]), grown.special_id(INTERNVL_MARKERS[-1])
    llm = made.parts["backbone"]["init_args"]
    if first > llm["vocab_size"]:
        raise UserError(
            f"--image-tokens: the tokenizer of {made.source.name} has {first:,} tokens, its embedding "
            f"{llm['vocab_size']:,} rows; take the tokenizer of this checkpoint"
        )
    llm["vocab_size"] = rows = max(llm["vocab_size"], last + 1)  # a vocabulary may have spare rows
    for name in set(ROWS) & set(made.entries):
        dtype, shape = made.entries[name]
        made.entries[name] = (dtype, (rows, *shape[1:]))
    return ((name, _grown(tensor, first, rows) if name in ROWS else tensor) for name, tensor in made.tensors())


def _grown(tensor: Tensor, first: int, rows: int) -> Tensor:
    """Rows from `first` on are the mean of those before it."""
    larger = torch.empty(rows, *tensor.shape[1:], dtype=tensor.dtype)
    larger[:first] = tensor[:first]
    larger[first:] = tensor[:first].mean(0, dtype=torch.float32).to(tensor.dtype)
    return larger
