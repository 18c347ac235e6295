"""Pictures with a caption: Tux Paint stamps, Open Clip Art, emoji."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from html import unescape

from mmframe.data.demo_sources import emoji_pictures
from mmframe.data.offline.source import Item, slug
from mmframe.data.packages import Packages

_MOST_OF_A_TITLE = 3  # a title of more pictures is that of a collection: "Lemon SVG theme"


def stamps(packages: Packages) -> Iterator[Item]:
    """Cut-out photos and drawings; the text file beside each starts with English. Stamps in SVG are left out."""
    root = packages.apt("tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps"
    for picture in sorted(root.rglob("*.png")):
        text = picture.with_suffix(".txt")
        if text.is_file():  # else it is a mirrored variant
            caption = text.read_text(encoding="utf-8").partition("\n")[0].strip()
            name = picture.relative_to(root).with_suffix("").as_posix()
            yield Item(slug(name), picture.read_bytes(), {"caption": caption})


def clipart(packages: Packages) -> Iterator[Item]:
    """Drawings (PNG) with their titles (in the SVG). Those under GPL are left out, and flags: held-out flags of the
    source `flags` must not come in by this way."""
    drawings = packages.apt("openclipart-svg") / "usr/share/openclipart/svg"
    pictures = packages.apt("openclipart-png") / "usr/share/openclipart/png"
    files = sorted(drawings.rglob("*.svg"))
    titles = {file: _title(file.read_text(encoding="utf-8", errors="replace")) for file in files}
    uses = Counter(title.lower() for title in titles.values())
    for drawing, title in titles.items():
        name = drawing.relative_to(drawings).with_suffix("")
        picture = pictures / name.parent / f"{name.name}.png"
        if "flag" in f"{name.parent} {title}".lower() or not re.search("[a-z]{3}", title.lower()):
            continue
        if uses[title.lower()] <= _MOST_OF_A_TITLE and picture.is_file():
            caption = re.sub(r"^Clipart by .*? - ", "", title, flags=re.IGNORECASE).replace("_", " ")
            yield Item(slug(name.as_posix()), picture.read_bytes(), {"caption": caption})


def emoji(packages: Packages) -> Iterator[Item]:
    """Noto emoji with their English names: the pictures and splits of the demo."""
    for key, picture, asked in emoji_pictures(packages):
        yield Item(key, picture.read_bytes(), {"caption": asked[0][1]})


def _title(svg: str) -> str:
    """Title of a drawing; empty if it has none, if it is the author's name, or if the drawing is not free of terms."""
    if re.search(r"""license[^>]*resource=["'][^"']*/GPL/""", svg):
        return ""
    title = _first(r"<dc:title>(.*?)</dc:title>", svg)
    return "" if title == _first(r"<dc:creator.*?<dc:title>(.*?)</dc:title>", svg) else title


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.DOTALL)
    return " ".join(unescape(found[1]).split()) if found else ""
