"""Several processes, one evaluation: each answers its share, all end up with all answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from mmframe.errors import UserError

PATIENCE = timedelta(days=7)
"""How long ranks wait for the slowest: shares of the examples take as long as they take."""

Value = TypeVar("Value")


class FirstRankFailed(UserError):
    """What the first rank found wrong, on the others: it has been told already."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that evaluate together; alone by default.

    Attributes:
        rank: Number of this process.
        count: Of processes.
        group: Group of all of them over gloo.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    @classmethod
    def joined(cls) -> Ranks:
        """The ranks of torch.distributed, which is begun where torchrun's environment asks for it."""
        if not dist.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or "RANK" not in os.environ:
                return cls()
            dist.init_process_group("gloo", timeout=PATIENCE)
        if dist.get_world_size() == 1:
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=PATIENCE))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, on each of them.

        Raises:
            UserError: another rank has ended.
        """
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        try:
            dist.all_gather_object(found, value, group=self.group)
        except RuntimeError as error:
            raise UserError(f"rank {self.rank}: another rank has ended; the same command goes on ({error})") from error
        return found

    def on_first(self, act: Callable[[], Any]) -> None:
        """The first rank acts, the others wait for it.

        Raises:
            UserError: as `act`, on all ranks.
        """
        error = None
        if self.first:
            try:
                act()
            except UserError as caught:
                error = caught
        message = self.gather(None if error is None else str(error))[0]
        if error is not None:
            raise error
        if message is not None:
            raise FirstRankFailed(message)
