"""Bytes of the tensors that are alive, followed operation by operation; on the meta device nothing is allocated."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """A context that writes down when each tensor's memory begins and ends, forward and backward.

    Memory is that of storages, so views cost nothing and what autograd keeps counts until it lets go. What lived before
    the context does not count, nor does scratch space inside of a kernel.

    Attributes:
        events: (number of the storage, bytes; negative where it ends), in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int]] = []
        self._numbers: dict[int, int] = {}  # storages that are alive, by address: their numbers; -1: of before
        self._count = 0

    def known(self, tensors: Iterable[Tensor]) -> None:
        """Tensors that were there before: their storages are not counted."""
        for tensor in tensors:
            self._numbers[tensor.untyped_storage()._cdata] = -1

    def number(self, tensor: Tensor) -> int | None:
        """Number of the storage of a tensor that is alive."""
        return self._numbers.get(tensor.untyped_storage()._cdata)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._numbers or not size:
            return
        number = self._numbers[address] = self._count
        self._count += 1
        self.events.append((number, size))
        weakref.finalize(storage, self._end, address, number, size).atexit = False

    def _end(self, address: int, number: int, size: int) -> None:
        self.events.append((number, -size))
        self._numbers.pop(address, None)


@dataclass(frozen=True)
class Timeline:
    """Bytes alive after each event: `gradients` of the weights, `rest` is all else. The forward is the first
    `forward` events."""

    rest: np.ndarray
    gradients: np.ndarray
    forward: int

    @classmethod
    def of(cls, events: list[tuple[int, int]], gradients: Iterable[int], forward: int) -> Timeline:
        """From the events of LiveBytes and the numbers of the gradients' storages."""
        number, size = np.array(events, dtype=np.int64).reshape(-1, 2).T
        is_gradient = np.isin(number, list(gradients))
        return cls(np.where(is_gradient, 0, size).cumsum(), np.where(is_gradient, size, 0).cumsum(), forward)

    def activations(self, times: float = 1.0) -> float:
        """Most bytes alive without gradients of weights, where a step has so many times the rows."""
        return times * float(self.rest.max(initial=0))

    def step(self, gradients: float, times: float = 1.0) -> float:
        """Most bytes alive with gradients: those of the step before live until the forward is done (Lightning sets
        them to None only then), and then the new ones come into being while activations go.

        Args:
            gradients: Bytes of all gradients.
            times: So many times the rows.
        """
        ahead = times * float(self.rest[: self.forward].max(initial=0)) + gradients
        behind = (times * self.rest + self.gradients)[self.forward :]
        return max(ahead, float(behind.max(initial=0)))
