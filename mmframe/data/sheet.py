"""A contact sheet of rows: the tiles as the model gets them, and every token, coloured by its kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmframe.batch import IGNORE, Sample
from mmframe.kinds import TokenKind
from mmframe.processing import ChatProcessor

COLOURS = {"text": "#e8e8e8", "learnt": "#b7e4c7", "image": "#a9c9f0", "boundary": "#f6c68a"}
WIDTH, TILE, MARGIN, SIZE = 1400, 96, 14, 15


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens that are drawn as one box: a token of text, or all slots of an image."""

    text: str
    colour: str


def contact_sheet(rows: Sequence[Sample], processor: ChatProcessor, most: int, most_tiles: int = 13) -> Image.Image:
    """Draws rows one under the other, document by document.

    Args:
        rows: of tokens and normalised tiles.
        processor: that made them; tells token texts and undoes the normalisation.
        most: documents that are drawn.
        most_tiles: of a document that are drawn; the rest are counted.
    """
    font = _font()
    panels = list(islice((panel for row in rows for panel in _panels(row, processor, font, most_tiles)), most))
    legend = _legend(font)
    sheet = Image.new("RGB", (WIDTH, legend.height + sum(panel.height for panel in panels)), "white")
    y = 0
    for panel in (legend, *panels):
        sheet.paste(panel, (0, y))
        y += panel.height
    return sheet


def pieces(row: Sample, document: int, processor: ChatProcessor) -> list[Piece]:
    """What is drawn of a document's tokens.

    A token is `learnt` where it is itself the label of a supervised position. Tokens of text that make no character
    alone are joined with their neighbours.
    """
    here = np.flatnonzero((row.docs == document).numpy())
    ids, kinds, labels = row.ids[here].tolist(), row.kinds[here].tolist(), row.labels[here].tolist()
    branches, blocks = row.branches[here].tolist(), row.blocks[here].tolist()
    learnt = [False] + [label != IGNORE and b == a for label, a, b in zip(labels, branches, branches[1:], strict=False)]
    found: list[Piece] = []
    start = 0
    for end in range(1, len(ids) + 1):
        if end < len(ids) and blocks[start] == blocks[end]:
            if blocks[start] >= 0:
                continue
            same = (kinds[end], learnt[end], branches[end]) == (kinds[start], learnt[start], branches[start])
            if same and "\ufffd" in processor.tokenizer.decode(ids[start:end], special=True):
                continue
        text = processor.tokenizer.decode(ids[start:end], special=True)
        kind = kinds[start]
        if blocks[start] >= 0:
            found.append(Piece(f"{end - start} image tokens", COLOURS["image"]))
        else:
            name = "boundary" if kind == TokenKind.BOUNDARY else "learnt" if learnt[start] else "text"
            found.append(Piece(text.replace("\n", "\u21b5") or "\u00b7", COLOURS[name]))
        start = end
    return found


def _panels(row: Sample, processor: ChatProcessor, font: ImageFont.FreeTypeFont, most: int) -> Iterator[Image.Image]:
    keys = row.key.split(", ")
    tile = 0
    for document in row.docs.unique().tolist():
        here = row.docs == document
        count = len(row.tile_index[here & (row.blocks >= 0)].unique())
        pictures = [_picture(row.tiles[n].numpy(), processor) for n in range(tile, tile + min(count, most))]
        tile += count
        supervised = int((row.labels[here] != IGNORE).sum())
        title = f"{keys[document] if document < len(keys) else '?'}   {int(here.sum())} tokens, {count} tiles, "
        yield _panel(f"{title}{supervised} learnt", pictures, count, pieces(row, document, processor), font, document)


def _panel(
    title: str,
    pictures: Sequence[Image.Image],
    count: int,
    parts: Sequence[Piece],
    font: ImageFont.FreeTypeFont,
    document: int,
) -> Image.Image:
    line = SIZE + 7
    places, x, y = [], MARGIN, MARGIN + line + (TILE + 8 if pictures else 0)
    for part in parts:
        text = part.text if len(part.text) < 90 else part.text[:87] + "..."
        width = int(font.getlength(text)) + 5
        if x + width > WIDTH - MARGIN:
            x, y = MARGIN, y + line
        places.append((x, y, width, text, part.colour))
        x += width + 2
    panel = Image.new("RGB", (WIDTH, y + line + MARGIN), "white")
    draw = ImageDraw.Draw(panel)
    draw.line((0, 0, WIDTH, 0), fill="black" if document == 0 else "#bbbbbb", width=2 if document == 0 else 1)
    draw.text((MARGIN, 6), title, font=font, fill="#444444")
    for number, picture in enumerate(pictures):
        panel.paste(picture, (MARGIN + number * (TILE + 4), MARGIN + line))
    if count > len(pictures):
        draw.text((WIDTH - 90, MARGIN + line), f"+ {count - len(pictures)} tiles", font=font, fill="#444444")
    for x, y, width, text, colour in places:
        draw.rectangle((x, y, x + width, y + line - 3), fill=colour)
        draw.text((x + 2, y + 1), text, font=font, fill="black")
    return panel


def _legend(font: ImageFont.FreeTypeFont) -> Image.Image:
    legend = Image.new("RGB", (WIDTH, SIZE + 16), "white")
    draw = ImageDraw.Draw(legend)
    x = MARGIN
    for name, colour in COLOURS.items():
        width = int(font.getlength(name)) + 10
        draw.rectangle((x, 5, x + width, SIZE + 11), fill=colour)
        draw.text((x + 5, 6), name, font=font, fill="black")
        x += width + 8
    draw.text((x + 8, 6), "a thick line begins a row, a thin one the next record in it", font=font, fill="#444444")
    return legend


def _picture(tile: np.ndarray, processor: ChatProcessor) -> Image.Image:
    """A tile [3, H, W] as a picture; where the median was taken away, grey stands for it."""
    if tile.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(tile.transpose(1, 2, 0))).resize((TILE, TILE))
    std, mean = (np.array(v, dtype=np.float32)[:, None, None] for v in (processor.std, processor.mean))
    pixels = tile.astype(np.float32) * std + mean + (0.5 if processor.subtract_median else 0)
    shown = Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))
    return shown.resize((TILE, TILE), Image.Resampling.BICUBIC)


def _font() -> ImageFont.FreeTypeFont:
    """Matplotlib brings a font of wide coverage."""
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), SIZE)
