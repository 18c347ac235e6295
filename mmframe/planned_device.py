"""What a tensor computes on, also where it only stands for one.

Tensors on the meta device have shapes and no numbers. A plan runs a training step on them in place of the device that
it is about; code that does something else on a CPU than on a GPU asks here, so that the plan sees what that device
would do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_planned = "meta"


def device_type(tensor: Tensor) -> str:
    """`cpu`, `cuda`, ...; of a meta tensor the device that is planned for, `meta` where none is."""
    return _planned if tensor.is_meta else tensor.device.type


@contextmanager
def planned_for(kind: str) -> Iterator[None]:
    """In here, meta tensors stand for tensors on `kind`."""
    global _planned
    before, _planned = _planned, kind
    try:
        yield
    finally:
        _planned = before
