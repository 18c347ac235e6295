"""What readers share: rows as plain columns, each with the place it came from, and files relative to a folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmframe.data.files import expand, is_url
from mmframe.errors import UserError

Row = dict[str, Any]
"""Column -> value. Beside those of the file there is `file`: its name without folder and suffix."""
PREFIXES = ("offline:", "demo:")


@dataclass
class Rows:
    """The rows of one or more files. Texts are in memory, pictures are not.

    Attributes:
        rows: in the order of the files.
        places: of each row, for messages: "FILE row 7".
        files: those that were read, for the fingerprint.
    """

    rows: list[Row]
    places: list[str]
    files: list[Path]

    def pick(self, numbers: Iterable[int]) -> Rows:
        """Some of the rows."""
        chosen = list(numbers)
        return Rows([self.rows[n] for n in chosen], [self.places[n] for n in chosen], self.files)


class Files:
    """Finds the files of a task's `data`.

    Args:
        root: Where paths start; None: there is no folder, only `offline:`, `demo:` and absolute paths are found.
        hint: What to add to the message that a file is missing: where it is had.
    """

    def __init__(self, root: Path | None, hint: str) -> None:
        self.root, self.hint = root, hint

    def place(self, path: str) -> str:
        """A path of the YAML as `expand` takes it."""
        if path.startswith(PREFIXES) or is_url(path) or Path(path).is_absolute():
            return path
        if self.root is None:
            raise UserError(f"{path}: say with --data DIR where the files are{self.hint}")
        return str(self.root / path)

    def find(self, pattern: str | list[str], suffixes: tuple[str, ...] = ()) -> list[Path]:
        """The files of a path or pattern, sorted; at least one.

        Raises:
            UserError: one is missing; says where it is had.
        """
        patterns = [pattern] if isinstance(pattern, str) else pattern
        try:
            return [Path(file) for file in expand([self.place(each) for each in patterns], suffixes)]
        except UserError as error:
            raise UserError(f"{error}{self.hint}") from error


def broken(file: Path, what: str) -> UserError:
    """A file that is not what its name says."""
    return UserError(f"{file}: {what}; it is damaged or not the official file, get it again")


def at_path(data: Any, path: str, file: Path) -> Any:
    """What a file holds at a dotted path of keys; "" is all of it."""
    for key in filter(None, path.split(".")):
        if not isinstance(data, Mapping) or key not in data:
            has = f"keys {', '.join(map(str, list(data)[:8]))}" if isinstance(data, Mapping) else type(data).__name__
            raise broken(file, f"there is no {key!r} (of {path!r}) in it, it has {has}")
        data = data[key]
    return data
