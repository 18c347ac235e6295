"""Source: where the records of a mixture come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from mmframe.contracts import Component
from mmframe.data.records import Record
from mmframe.errors import BadRecord as BadRecord
from mmframe.errors import UserError


class Source(Component, ABC):
    """Records of one data set: map-style and sized.

    Making one opens nothing. `open` reads the index, or makes it once and keeps it in the user's cache folder; loader
    processes get a copy of the opened source, so what it holds must be small (index arrays are memory-mapped) and can
    be pickled.

    Args:
        repeat: Passes over the records in an epoch; 0.1 has seen everything once after ten epochs.
        max_tiles: Most tiles of a record's pictures; null takes that of the mixture.
        prompts: What is asked where a record has a caption alone: texts, or the name of a set of prompts; one is drawn
            for each record. null takes that of the mixture.
        jpeg_noise: Pictures go through JPEG of a quality drawn from 75 to 100 (`data_augment` of the reference).
    """

    toy_args: ClassVar[dict | None] = {}
    guessed_by: ClassVar[tuple[str, ...]] = ()
    """Endings of names that are this format for sure, so that data can be shown by its path alone; "/" is a folder. The
    constructor's first argument is the path."""

    def __init__(
        self,
        repeat: float = 1.0,
        max_tiles: int | None = None,
        prompts: str | list[str] | None = None,
        jpeg_noise: bool = False,
    ) -> None:
        super().__init__()
        if repeat <= 0:
            raise UserError(f"{type(self).__name__}: repeat={repeat} must be above 0; leave the source out instead")
        if max_tiles is not None and max_tiles < 1:
            raise UserError(f"{type(self).__name__}: max_tiles={max_tiles} must be at least 1")
        self.repeat, self.max_tiles, self.prompts, self.jpeg_noise = repeat, max_tiles, prompts, jpeg_noise

    @abstractmethod
    def open(self) -> None:
        """Makes the records readable; a second call does nothing.

        Raises:
            UserError: a file is missing, or is not of this format; one line.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Number of records, good and bad; after `open`."""

    @abstractmethod
    def record(self, index: int) -> Record:
        """One record; its pictures are only named, not read.

        Raises:
            BadRecord: it cannot be read or is none; with the reason.
        """

    @abstractmethod
    def files(self) -> Iterable[tuple[str, int]]:
        """(name, size in bytes) of the files that the records come from; after `open`. By these a resumed run knows
        its data again: names without the folder, so that data may move."""

    def parts(self) -> dict[str, Source] | None:
        """The sources that this one stands for, by name (a file that lists several); None: it is one itself."""
        return None
