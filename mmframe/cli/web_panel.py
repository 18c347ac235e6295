"""The right side of the chat page, as HTML: the tiles that the model saw, and the numbers of the last answer."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from mmframe.cli.picture_facts import PictureFacts
from mmframe.cli.serving import Served
from mmframe.cli.turn import TurnFacts

SHOWN = 160  # side of a tile on the page, pixels

# Weights of 600: the page's own font has no bolder ones. Sharing is hidden: it would send the conversation elsewhere.
CSS = """
#head { align-items: center; }
#head h1 { font-size: 1.3rem; font-weight: 600; margin: 0; }
#head p { margin: 0; }
#head p, .seen small, .seen figcaption, .numbers span { opacity: 0.65; color: var(--body-text-color); }
#talk .message img { max-height: 240px; width: auto; }
#talk button[aria-label="Share"], #talk button[title="Share"] { display: none; }
.seen h2 { font-size: 1rem; font-weight: 600; margin: 0 0 8px; }
.seen b, .numbers b { font-weight: 600; }
.seen .picture { margin-bottom: 16px; }
.seen .tiles { display: flex; gap: 12px; align-items: flex-end; flex-wrap: wrap; }
.seen .grid { display: grid; gap: 4px; grid-template-columns: repeat(var(--columns), 1fr); flex: 3 1 180px;
  max-width: max(60px * var(--columns), min(160px, 340px / var(--rows)) * var(--columns)); }
.seen figure { margin: 0; position: relative; }
.seen figure.thumbnail { flex: 1 1 80px; max-width: 110px; }
.seen figure img { width: 100%; display: block; border-radius: 4px; }
.seen figure i { position: absolute; left: 4px; top: 4px; padding: 0 5px; border-radius: 3px; font-size: 11px;
  font-style: normal; color: white; background: rgb(0 0 0 / 0.55); }
.seen figcaption { font-size: 11px; text-align: center; }
.seen .facts { margin-top: 8px; }
.numbers { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; }
.numbers div { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 6px 10px; }
.numbers b { display: block; font-size: 1.15rem; }
.numbers span { font-size: 12px; }
"""


def welcome() -> str:
    """What stands there before the first picture."""
    return (
        '<div class="seen"><h2>What the model sees</h2>'
        "<small>A picture is cut into square tiles, with the whole of it as one more; each becomes a fixed number of "
        "tokens. They appear here.</small></div>"
    )


def pictures_seen(served: Served, images: Sequence[Image.Image], facts: Sequence[PictureFacts]) -> str:
    """The tiles of each picture as the model got them, with their counts.

    Args:
        served: Cuts the pictures.
        images: The pictures of a turn.
        facts: Theirs.
    """
    parts = []
    for image, fact in zip(images, facts, strict=True):
        tiles = served.model.processor.cut(image, fact.tile, fact.columns * fact.rows)
        shown = [f'<figure><img src="{data_uri(t)}"><i>{n}</i></figure>' for n, t in enumerate(tiles, 1)]
        whole = ""
        if fact.thumbnail:
            whole = shown.pop().replace("<figure>", '<figure class="thumbnail">')
            whole = whole.replace("</figure>", "<figcaption>thumbnail</figcaption></figure>")
        grid = f"{fact.columns} x {fact.rows} tiles" + (" + thumbnail" if fact.thumbnail else "")
        parts.append(
            f'<div class="picture"><div class="tiles">'
            f'<div class="grid" style="--columns: {fact.columns}; --rows: {fact.rows}">{"".join(shown)}</div>'
            f"{whole}</div>"
            f'<div class="facts">{fact.width} x {fact.height} px: {"1 tile" if fact.tiles == 1 else grid}<br>'
            f"{fact.tiles} x {fact.tokens_per_tile} = <b>{fact.tokens:,} tokens</b></div></div>"
        )
    return f'<div class="seen"><h2>What the model sees</h2>{"".join(parts)}</div>'


def numbers(facts: TurnFacts) -> str:
    """The last answer in numbers."""
    asked = facts.prompt > 0
    rows = {
        "tokens of the answer": f"{facts.tokens:,}",
        "tokens of the prompt": f"{facts.prompt:,}",
        "of them cached": f"{facts.reused:,}",
        "tokens of new pictures": f"{facts.image_tokens:,}",
        "to the first token": f"{facts.first:.2f} s",
        "tokens a second": f"{facts.tokens_per_second:.1f}" if facts.tokens_per_second else "-",
    }
    cells = [
        f"<div><b>{html.escape(value) if asked else '-'}</b><span>{name}</span></div>" for name, value in rows.items()
    ]
    return f'<div class="numbers">{"".join(cells)}</div>'


def data_uri(tile: Tensor) -> str:
    """A tile, uint8 [3, h, w], as an image inside the page."""
    image = Image.fromarray(tile.permute(1, 2, 0).numpy())
    if image.width > SHOWN:
        image = image.resize((SHOWN, SHOWN), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
