"""Which loaders can be continued exactly after a kill, and why others cannot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mmframe.errors import UserError


def refuse_inexact(loaders: Iterable[Any]) -> None:
    """Lets only loaders pass that a killed run can take up at the very next batch.

    Lightning continues any loader, but exactly only those that keep their own place and have a length: a plain one
    begins its epoch anew, and one without a length loses the batch that was fetched ahead.

    Raises:
        UserError: a loader cannot be continued exactly; says why and what to do.
    """
    for loader in loaders:
        name = type(loader).__name__
        if not (hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")):
            raise UserError(
                f"data: the training loader is a {name}, which does not remember its place: a killed run would repeat "
                "or lose batches; use torchdata's StatefulDataLoader, or a data component of ours"
            )
        try:
            len(loader)
        except TypeError as error:
            raise UserError(
                f"data: the training loader ({name}) has no length: Lightning fetches one batch ahead, and a killed "
                "run would lose it; give the data set a __len__"
            ) from error
