"""Drawn shapes: the pictures of ToyData's validation rows and what there is to say about them. Needs no file."""

from __future__ import annotations

import io
from pathlib import Path

from mmframe.data.pictures import Embedded
from mmframe.tasks.readers.base import Files, Row, Rows


def read_toy(files: Files, size: int = 24, side: int = 32) -> Rows:
    """Rows with `key`, `image`, `colour`, `shape`, `caption` and `questions`, a list of [question, answer].

    Args:
        files: Not used.
        size: Pictures.
        side: Of a picture, pixels.
    """
    import numpy as np  # here, as this loads torch
    from PIL import Image  # here, as all of these: listing tasks is to load nothing heavy

    from mmframe.data import toy
    from mmframe.data.order import hash64

    rows: list[Row] = []
    for number in range(size):
        draws = (int(draw >> np.uint64(11)) for draw in hash64(3, 2, number))
        tiles, colour, shape = toy.drawn_shape(side, *draws)
        stream = io.BytesIO()
        Image.fromarray(tiles[0].permute(1, 2, 0).numpy()).save(stream, "PNG")
        rows.append(
            {
                "key": str(number),
                "image": Embedded(f"toy {number}", stream.getvalue()),
                "colour": colour,
                "shape": shape,
                "caption": f"a {colour} {shape}",
                "questions": [["what color?", colour], ["what shape?", shape]],
            }
        )
    return Rows(rows, [f"toy picture {row['key']}" for row in rows], [Path(toy.__file__)])  # the code is the data
