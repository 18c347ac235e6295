"""IndexedSource: what sources have in common whose records lie in large files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from mmframe.data.files import expand
from mmframe.data.index import Built
from mmframe.data.indexed_files import IndexedFiles
from mmframe.data.source import Source
from mmframe.data.unpack import unpacked
from mmframe.errors import UserError


class IndexedSource(Source):
    """Records found by an index of where they lie in their files; nothing of them is kept in memory.

    Args:
        named: The files: paths, URLs, patterns or folders, see `mmframe.data.files.expand`.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    """Of the files of a folder, those with these endings are meant; () for no folders."""
    row_array: ClassVar[str] = "offset"
    """The array of the index that has one entry for each record."""

    def __init__(self, named: str | list[str], **mix: Any) -> None:
        super().__init__(**mix)
        self.named = named
        self._rows: IndexedFiles | None = None

    @abstractmethod
    def index_kind(self) -> str:
        """Names the kind of index: another one whenever `index_file` would give something else."""

    @abstractmethod
    def index_file(self, file: str) -> Built:
        """Arrays that say where the records of one file are; empty arrays for a file without records."""

    def open(self) -> None:
        if self._rows is None:
            files = [unpacked(file) for file in expand(self.named, self.suffixes)]
            rows = IndexedFiles(files, self.index_kind(), self.index_file, self.row_array)
            if not len(rows):
                raise UserError(f"data: {self.named} holds no records")
            self._rows = rows

    @property
    def rows(self) -> IndexedFiles:
        """The records' places; after `open`."""
        assert self._rows is not None, "open() comes first"
        return self._rows

    def __len__(self) -> int:
        return len(self.rows)

    def files(self) -> Iterable[tuple[str, int]]:
        return self.rows.files()
