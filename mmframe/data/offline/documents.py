"""Pictures to read: pages of the R manuals with their text, figures of the GIMP help with their titles."""

from __future__ import annotations

import importlib
import io
import re
import sys
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from types import ModuleType

from mmframe.data.fetch import Unavailable
from mmframe.data.offline.source import Item, slug
from mmframe.data.offline.xhtml import DIV, IMAGE, PARAGRAPH, one_line
from mmframe.data.packages import Packages

# refman.pdf is left out: fullrefman.pdf has its pages again
_MANUALS = ("R-intro", "R-data", "R-admin", "R-lang", "R-ints", "R-exts", "R-FAQ", "fullrefman")
_DPI = 108  # 918 x 1188 for US letter, near 2 x 3 tiles of 448; its 10 pt letters are 15 pixels high
_LEAST_CHARACTERS = 20  # fewer are an empty page with its number


def manual_pages(packages: Packages) -> Iterator[Item]:
    """Pages of the R manuals in grey, with what is printed on them, line by line, as the text layer has it."""
    pdfium = _pdfium(packages)
    root = packages.apt("r-doc-pdf") / "usr/share/R/doc/manual"
    for manual in _MANUALS:
        if not (root / f"{manual}.pdf").is_file():
            continue
        document = pdfium.PdfDocument(root / f"{manual}.pdf")
        for number, page in enumerate(document, 1):
            text = printed(page.get_textpage().get_text_range())
            if len(text) >= _LEAST_CHARACTERS:
                png = io.BytesIO()
                page.render(scale=_DPI / 72).to_pil().convert("L").save(png, "PNG")
                asked = [["Read the text of this page.", text]]
                yield Item(f"{manual}-{number:04d}", png.getvalue(), {"questions": asked})
        document.close()


def printed(layer: str) -> str:
    """Text as it stands on the page, from a text layer in which U+FFFE is a hyphen at the end of a line."""
    lines = layer.replace("\ufffe", "-\n").replace("\r", "").split("\n")
    lines = ["".join(c for c in line if unicodedata.category(c) not in ("Cc", "Cn")).rstrip() for line in lines]
    return "\n".join(lines).strip()


def gimp_figures(packages: Packages) -> Iterator[Item]:
    """Figures of one picture, most of them dialogs and menus; one of several pictures has no title for each."""
    root = packages.apt("gimp-help-en") / "usr/share/gimp/2.0/help/en"
    seen: set[str] = set()
    for file in sorted(root.glob("*.html")):
        for figure in ET.parse(file).iter(DIV):
            if figure.get("class") != "figure":
                continue
            pictures = [image.get("src", "") for image in figure.iter(IMAGE)]
            title = next((one_line(p) for p in figure.iter(PARAGRAPH) if p.get("class") == "title"), "")
            title = re.sub(r"^Figure [A-Z0-9.]+\s*", "", title)
            if len(pictures) != 1 or not title or pictures[0] in seen or not (root / pictures[0]).is_file():
                continue
            seen.add(pictures[0])
            key = slug(pictures[0].removeprefix("images/").rpartition(".")[0])
            yield Item(key, (root / pictures[0]).read_bytes(), {"caption": title})


def _pdfium(packages: Packages) -> ModuleType:
    """pypdfium2: the installed one, or out of its wheel, which holds a compiled PDF library and needs nothing else."""
    try:
        parent = str(packages.pip("pypdfium2", "5.15.2", "pypdfium2").parent)
    except Unavailable as error:
        raise Unavailable(f"{error}; reading PDF needs it, run: pip install pypdfium2") from error
    sys.path.insert(0, parent)
    try:
        return importlib.import_module("pypdfium2")
    finally:
        sys.path.remove(parent)
