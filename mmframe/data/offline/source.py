"""OfflineSource: one data set that package registries hold, and the items that it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmframe.data.packages import Packages


class Item(NamedTuple):
    """A picture and what is said about it.

    Attributes:
        key: Unique in its source; letters, digits, "-" and "_", see `slug`.
        picture: The bytes of a picture file, as the package has it.
        said: {"caption": text} or {"questions": [[question, answer], ...]}.
        split: Where the package has splits of its own; None: by the picture's content.
    """

    key: str
    picture: bytes
    said: dict[str, Any]
    split: str | None = None


@dataclass(frozen=True)
class OfflineSource:
    """One data set.

    Attributes:
        name: Of its folder, and in the mixture.
        about: What it is, one line.
        licence: Of the pictures and of what is said about them, one line.
        megabytes: What is downloaded for it, about.
        pictures: Packages -> its items, always in the same order; None: a source of text.
        texts: Packages -> its texts, always in the same order; None: a source of pictures.
        prompts: Name of the set of prompts that its captions answer.
    """

    name: str
    about: str
    licence: str
    megabytes: int
    pictures: Callable[[Packages], Iterator[Item]] | None = None
    texts: Callable[[Packages], Iterator[str]] | None = None
    prompts: str | None = None


def slug(text: str) -> str:
    """A key out of a path or name: `animals/sea horse` -> `animals-sea_horse`."""
    return "".join(c if c.isascii() and c.isalnum() else "-" if c in "/-" else "_" for c in text)
