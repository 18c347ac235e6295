"""Text out of the XHTML pages that DocBook makes: of one element, and of a whole page without its navigation."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

_NAMESPACE = "{http://www.w3.org/1999/xhtml}"
DIV, IMAGE, PARAGRAPH = f"{_NAMESPACE}div", f"{_NAMESPACE}img", f"{_NAMESPACE}p"

_INLINE = set("a abbr acronym b cite code em i img kbd q span strong sub sup tt".split())
_NOT_TEXT = {"navheader", "navfooter", "docnav", "docnav top", "toc", "index", "bibliography", "list-of-figures"}


def one_line(element: ET.Element) -> str:
    """All text of an element on one line."""
    return " ".join("".join(element.itertext()).split())


def page_text(file: Path) -> str:
    """Headings and paragraphs of a page, an empty line between them; lines of listings are kept."""
    paragraphs = [""]
    body = ET.parse(file).getroot().find(f"{_NAMESPACE}body")
    if body is not None:
        _collect(body, paragraphs, listing=False)
    return "\n\n".join(text for text in map(str.strip, paragraphs) if text)


def _collect(element: ET.Element, paragraphs: list[str], listing: bool) -> None:
    """Appends to the last paragraph; a block starts a new one, and so does what follows it."""
    tag = element.tag.removeprefix(_NAMESPACE) if isinstance(element.tag, str) else "comment"
    if tag == "comment" or element.get("class") in _NOT_TEXT or element.get("id") in ("banner", "title"):
        return
    block = tag not in _INLINE
    listing = listing or tag == "pre"
    if block:
        paragraphs.append("")
    _append(element.text, paragraphs, listing)
    for child in element:
        _collect(child, paragraphs, listing)
        _append(child.tail, paragraphs, listing)
    if block:
        paragraphs.append("")


def _append(text: str | None, paragraphs: list[str], listing: bool) -> None:
    if not text:
        return
    if not listing:
        text = re.sub(r"\s+", " ", text)
        if paragraphs[-1].endswith(" "):
            text = text.lstrip()
    paragraphs[-1] += text
