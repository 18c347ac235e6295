"""The prompt of a row, which a prefix mask lets see all of itself: where it ends, and what cannot be had with it.

T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmframe.errors import UserError
from mmframe.geometry import FACTS

if TYPE_CHECKING:
    from mmframe.batch import Batch
    from mmframe.cache import KVCache


def in_front_of(answers_T: Tensor, docs_T: Tensor, branches_T: Tensor) -> Tensor:
    """Tokens in front of the first answer of their document, or of their branch: bool [T].

    The last of them predicts the answer's first token. Later turns are no part of it, and without an answer all is.

    Args:
        answers_T: bool, tokens of answers.
        docs_T: Documents; neighbours with equal numbers are of one.
        branches_T: Branches.
    """
    begins = torch.ones_like(answers_T)
    begins[1:] = (docs_T[1:] != docs_T[:-1]) | (branches_T[1:] != branches_T[:-1])
    count = answers_T.cumsum(0)
    part_T = begins.cumsum(0) - 1
    return count == (count - answers_T.long())[begins][part_T]


def prefix_documents(batch: Batch) -> Tensor:
    """Documents whose prompt has several tokens: bool [documents], on the host.

    Raises:
        UserError: questions share an image, which would have to see each of them.
    """
    document_T = torch.arange(len(batch.doc_lengths)).repeat_interleave(batch.doc_lengths)
    if bool(batch.doc_branched.any()):
        key = _key(batch, int(batch.doc_branched[document_T].nonzero()[0]))
        raise UserError(
            f"sample {key!r}: several questions share an image, which attention=prefix does not allow: the image would "
            "have to see each of them; set questions_per_image: 1"
        )
    return document_T[batch.prefix].bincount(minlength=len(batch.doc_lengths)) > 1


def refuse_pieces(batch: Batch, facts: Tensor, rows: Tensor, cache: KVCache) -> None:
    """A part of a prompt that is in the cache has not seen what comes now.

    Args:
        batch: The new tokens.
        facts: [F, T] of them.
        rows: [T], of the cache.
        cache: The past.

    Raises:
        UserError: a prompt goes on in a document that the cache holds the beginning of.
    """
    if not any(cache.lengths) or not bool(batch.prefix.any()):
        return
    last = (cache.used - 1)[rows]
    torn = (facts[len(FACTS)] > 0) & (last >= 0) & (facts[0] == cache.table[0, rows, last])
    if bool(torn.any()):
        raise UserError(
            f"sample {_key(batch, int(torn.nonzero()[0]))!r}: its prompt goes on over a cache, but with "
            "attention=prefix all of a prompt sees all of it; give the prompt in one piece"
        )


def _key(batch: Batch, token: int) -> str:
    """Name of the row that a token stands in."""
    row = int((torch.tensor(batch.row_lengths).cumsum(0) <= token).sum())
    return batch.keys[row] if batch.keys else str(row)
