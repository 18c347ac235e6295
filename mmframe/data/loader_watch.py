"""What loader processes are at, so that one that hangs or dies can be told in one line with the row it was at."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import get_worker_info

from mmframe.errors import UserError


class Desk:
    """One place for each loader process, shared with it: since when it has been at which row.

    Args:
        workers: Loader processes.
    """

    def __init__(self, workers: int) -> None:
        # columns: seconds of the monotonic clock (0: idle), epoch, row; doubles hold rows up to 2^53
        self._places = torch.zeros(max(1, workers), 3, dtype=torch.float64).share_memory_()

    def take(self, epoch: int, row: int) -> None:
        info = get_worker_info()
        if info is not None:
            self._places[info.id, 1], self._places[info.id, 2] = epoch, row
            self._places[info.id, 0] = time.monotonic()

    def leave(self) -> None:
        info = get_worker_info()
        if info is not None:
            self._places[info.id, 0] = 0

    def longest(self) -> tuple[float, int, int] | None:
        """(seconds, epoch, row) of the process that has been at a row for longest; None: all are idle."""
        busy = [place for place in self._places.tolist() if place[0]]
        if not busy:
            return None
        since, epoch, row = min(busy)
        return time.monotonic() - since, int(epoch), int(row)


class Watched(Iterator):
    """The iterator of a loader; a process that hangs or dies becomes one line.

    Args:
        iterator: Of the loader.
        desk: What its processes are at.
        rows: Tell in words what a row is, where they can (`describe(epoch, row)`).
        timeout: Seconds after which the loader gives up.
    """

    newest: Watched | None = None
    """The one that was made last: torch tells of a process that died wherever the program is at that moment."""

    def __init__(self, iterator: Iterator[Any], desk: Desk, rows: Any, timeout: float) -> None:
        self._iterator, self._desk, self._rows, self._timeout = iterator, desk, rows, timeout
        Watched.newest = self

    def __next__(self) -> Any:
        try:
            return next(self._iterator)
        except RuntimeError as error:
            if "DataLoader timed out after" in str(error):
                raise UserError(
                    f"data: no batch came within {self._timeout:g} s (faults.data_timeout); a loader process is at "
                    f"{self._where()}; look at it and at its disk, or allow more time; the same command then continues"
                ) from error
            raise

    @classmethod
    def death(cls, error: BaseException) -> str | None:
        """A line, if an error is torch's word for a loader process that was ended from outside, or comes from it.

        Torch raises it wherever the program is when the signal arrives: who wrote a log line may have made it his own.
        """
        cause: BaseException | None = error
        while cause is not None and not re.search(r"DataLoader worker.*(killed|exited)", str(cause)):
            cause = cause.__cause__
        if cause is None:
            return None
        where = cls.newest._where() if cls.newest is not None else "no row"
        return (
            f"data: a loader process was ended from outside while at {where} (out of memory? fewer data.num_workers "
            "take less); the same command continues"
        )

    def _where(self) -> str:
        found = self._desk.longest()
        if found is None:
            return "no row"
        seconds, epoch, row = found
        what = f" ({self._rows.describe(epoch, row)})" if hasattr(self._rows, "describe") else ""
        return f"row {row} of epoch {epoch}{what} for {seconds:.0f} s"
