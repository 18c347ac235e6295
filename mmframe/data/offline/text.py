"""English text: dictionary definitions, a handbook, a manual."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from mmframe.data.demo_sources import held_out, wordnet_glosses
from mmframe.data.offline.xhtml import page_text
from mmframe.data.packages import Packages

_LEAST_CHARACTERS = 200  # a page with fewer is a title page or a list of links


def wordnet(packages: Packages) -> Iterator[str]:
    """Definitions of WordNet, one a text, but for those by which the demo checks the language model."""
    glosses = list(wordnet_glosses(packages))
    kept_back = set(held_out(glosses))
    yield from (gloss for gloss in glosses if gloss not in kept_back)


def handbook(packages: Packages) -> Iterator[str]:
    """The Debian Administrator's Handbook, a section a text."""
    yield from _pages(packages.apt("debian-handbook") / "usr/share/doc/debian-handbook/html/en-US")


def gimp_text(packages: Packages) -> Iterator[str]:
    """GIMP's user manual, a section a text."""
    yield from _pages(packages.apt("gimp-help-en") / "usr/share/gimp/2.0/help/en")


def gcide(packages: Packages) -> Iterator[str]:
    """Entries of the Collaborative International Dictionary of English: Webster 1913 and additions."""
    file = packages.apt("dict-gcide") / "usr/share/dictd/gcide.dict.dz"
    with gzip.open(file, "rt", encoding="utf-8", errors="replace") as lines:  # dictzip is gzip with an index
        entry: list[str] = []
        for line in lines:
            if line[:1].strip() and entry:  # what is not indented starts the next entry
                yield from _entry("".join(entry))
                entry = []
            entry.append(line)
        yield from _entry("".join(entry))


def _entry(text: str) -> Iterator[str]:
    """An entry without pronunciation, marks of links and of the edition; a paragraph on a line."""
    if "\\" not in text.partition("\n")[0]:  # facts about the file, before the first word
        return
    text = re.sub(r"\s*\\[^\\\n]*\\(?:\s*\([^)\s]*\))?", "", text, count=1)
    text = re.sub(r"\[(?:1913 Webster|PJC|WordNet[^\]]*|Webster 1913 Suppl\.|Century Dict[^\]]*)[^\]]*\]", "", text)
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.replace("{", "").replace("}", ""))]
    yield "\n".join(part for part in paragraphs if part)


def _pages(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.html")):
        if len(text := page_text(file)) >= _LEAST_CHARACTERS:
            yield text
