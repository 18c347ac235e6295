"""Pictures with questions: easy-VQA, maps, flags. The answers are real, the wording about maps and flags is ours."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from PIL import Image

from mmframe.data.demo_sources import countries, easy_vqa_pictures, flag_pictures
from mmframe.data.offline.source import Item, slug
from mmframe.data.packages import Packages

_LEAST_PIXELS = 50  # a region with fewer cannot be seen
_MOST_COLOURS = 1 << 16


def easy_vqa(packages: Packages) -> Iterator[Item]:
    """Drawn shapes, in the official split; `val` as in the demo."""
    for split, (key, picture, asked) in easy_vqa_pictures(packages):
        yield Item(key, picture.read_bytes(), {"questions": asked}, split)


def flags(packages: Packages) -> Iterator[Item]:
    """The flags of the demo; of those that look the same, the one of the independent country."""
    facts = countries(packages)
    for key, picture, asked in sorted(flag_pictures(packages), key=lambda flag: not facts[flag.key].get("independent")):
        yield Item(key, picture.read_bytes(), {"questions": asked})


def maps(packages: Packages) -> Iterator[Item]:
    """Maps of KGeography: what they show; the region of a colour, and its capital."""
    root = packages.apt("kgeography-data") / "usr/share/kgeography"
    for file in sorted(root.glob("*.kgm")):
        about = ET.parse(file).getroot()
        picture = root / about.findtext("mapFile", f"{file.stem}.png")
        if not picture.is_file():
            continue
        shown = re.sub(r"\s*\(.*?\)", "", about.findtext("name", "")).strip()
        asked = [["What does this map show?", shown]] if shown else []
        with Image.open(picture) as image:
            colours = {colour: count for count, colour in image.convert("RGB").getcolors(_MOST_COLOURS) or ()}
        for region in about.iter("division"):
            name, capital = region.findtext("name", "").strip(), region.findtext("capital", "").strip()
            rgb = tuple(int(region.findtext(f"color/{part}", "-1")) for part in ("red", "green", "blue"))
            if not name or region.findtext("ignore") == "yes" or colours.get(rgb, 0) < _LEAST_PIXELS:
                continue
            asked.append([f"Which region is coloured rgb{rgb}?", name])
            if capital:
                asked.append([f"What is the capital of the region coloured rgb{rgb}?", capital])
        if asked:
            yield Item(slug(file.stem), picture.read_bytes(), {"questions": asked})
