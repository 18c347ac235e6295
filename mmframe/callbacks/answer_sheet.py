"""A few examples and how a model's answers to them change in training: samples.jsonl, and a page made from it."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mmframe.cli.run_dir import write_atomically
from mmframe.data.pictures import Picture, open_picture
from mmframe.metrics_file import rows_of
from mmframe.tasks.task import Example

SAMPLES, PAGE = "samples.jsonl", "samples.html"
THUMBNAIL = 160
"""Longer side of a picture on the page, pixels."""

_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 20px; color: #222 }
.wide { overflow-x: auto } table { border-collapse: collapse } h2 { margin: 28px 0 8px; font-size: 17px }
th, td { border: 1px solid #ddd; padding: 6px 9px; vertical-align: top; text-align: left; max-width: 260px;
         overflow-wrap: anywhere; white-space: pre-wrap }
th { background: #f5f5f5; white-space: nowrap } td:first-child { position: sticky; left: 0; background: #fff }
.right { background: #d3f0d8 } .partly { background: #fdf0c4 } .wrong { background: #f9dcd9 }
img { display: block; margin-bottom: 4px } small { color: #666 }
"""


class AnswerSheet:
    """samples.jsonl is only ever appended to: a line a step and example, with `step`, `task`, `id`, `prompt`,
    `images`, `answer`, `reference` and `score` (the metric's row). samples.html shows it, one column a step.

    Args:
        folder: Where both lie.
        examples: The examples by task.
    """

    def __init__(self, folder: Path, examples: Mapping[str, Sequence[Example]]) -> None:
        self.folder, self.examples = folder, examples
        self._pictures: dict[str, list[str]] = {}

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Appends lines and draws the page anew."""
        append_lines(self.folder / SAMPLES, rows)
        write_atomically(self.folder / PAGE, self.page())

    def page(self) -> str:
        """The page, complete in itself. Of steps that a continued run made twice the later ones count."""
        cells: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
        for row in rows_of((self.folder / SAMPLES).read_text(encoding="utf-8")):
            cells.setdefault((row["task"], str(row["id"])), {})[row["step"]] = row
        steps = sorted({step for each in cells.values() for step in each})
        tables = "".join(self._table(task, examples, cells, steps) for task, examples in self.examples.items())
        return (
            f"<!doctype html><meta charset=utf-8><title>{html.escape(self.folder.name)}</title>"
            f"<style>{_STYLE}</style><h1>Answers in training</h1>"
            "<p>A column a step. Green: right, yellow: partly, red: wrong, as the task's metric scores it.</p>"
            f"{tables}\n"
        )

    def _table(
        self,
        task: str,
        examples: Sequence[Example],
        cells: Mapping[tuple[str, str], Mapping[int, dict[str, Any]]],
        steps: Sequence[int],
    ) -> str:
        head = "".join(f"<th>step {step:,}</th>" for step in steps)
        lines = []
        for example in examples:
            found = cells.get((task, str(example.id)), {})
            row = "".join(_cell(found.get(step)) for step in steps)
            lines.append(f"<tr><td>{self._asked(task, example, found)}</td>{row}</tr>")
        return (
            f"<h2>{html.escape(task)}</h2><div class=wide><table><tr><th>example</th>{head}</tr>"
            f"{''.join(lines)}</table></div>"
        )

    def _asked(self, task: str, example: Example, found: Mapping[int, dict[str, Any]]) -> str:
        key = f"{task} {example.id}"
        if key not in self._pictures:
            self._pictures[key] = [thumbnail(picture) for picture in example.images]
        pictures = "".join(f'<img alt="" src="data:image/jpeg;base64,{data}">' for data in self._pictures[key])
        told = next(iter(found.values()), {}).get("reference", "")
        return (
            f"{pictures}{html.escape(example.prompt)}\n<small>{html.escape(str(example.id))}\n"
            f"reference: {html.escape(json.dumps(told, ensure_ascii=False))}</small>"
        )


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "<td></td>"
    return f"<td class={verdict(row)}>{html.escape(answer_text(row))}</td>"


def verdict(row: Mapping[str, Any]) -> str:
    """right, partly, wrong; "none" where the metric gives no score of one example (a perplexity)."""
    if "error" in row:
        return "wrong"
    score = row.get("score") or {}
    value = score.get("score", score.get("accuracy")) if isinstance(score, Mapping) else score
    if not isinstance(value, int | float):
        return "none"
    return "right" if value >= 1 else "partly" if value > 0 else "wrong"


def answer_text(row: Mapping[str, Any]) -> str:
    """The answer as shown: a text; of options the likelihoods; of a text its negative log-likelihood."""
    answer = row.get("answer", row.get("error", ""))
    if isinstance(answer, list):
        options = row.get("options") or range(len(answer))
        pairs = zip(options, answer, strict=False)
        return "\n".join(f"{option}: {value[0]:.2f} nats" for option, value in pairs)
    return f"{answer:.2f} nats" if isinstance(answer, float) else str(answer)


def thumbnail(picture: Picture) -> str:
    """A picture, made small, as base64 of a JPEG."""
    image = open_picture(picture)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return base64.b64encode(stream.getvalue()).decode()


def to_tensorboard(
    writer: Any, tag: str, examples: Sequence[Example], rows: Sequence[Mapping[str, Any]], step: int
) -> None:
    """The answers of one step as a table, and the pictures they are about.

    Args:
        writer: TensorBoard's SummaryWriter.
        tag: GROUP/TASK.
        examples: Those shown.
        rows: Their lines of answers.jsonl.
        step: Of the optimiser.
    """
    by_id = {str(row["id"]): row for row in rows}
    lines = ["| id | asked | answer | |", "|---|---|---|---|"]
    for example in examples:
        row = by_id[str(example.id)]
        cells = (str(example.id), example.prompt, answer_text(row))
        told = " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
        lines.append(f"| {told} | {verdict(row).replace('none', '')} |")
    writer.add_text(f"{tag}/answers", "\n".join(lines), step)
    for example in examples:
        for number, picture in enumerate(example.images):
            name = f"{tag}/{example.id}" + (f"_{number}" if number else "")
            caption = answer_text(by_id[str(example.id)])
            writer.add_image(name, np.asarray(captioned(picture, caption)), step, dataformats="HWC")


def captioned(picture: Picture, text: str) -> Image.Image:
    """A small picture with the answer beneath it."""
    image = open_picture(picture)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    made = Image.new("RGB", (max(THUMBNAIL, image.width), image.height + 16), "white")
    made.paste(image, (0, 0))
    ImageDraw.Draw(made).text((2, image.height + 2), text[:40], "black")
    return made


def append_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Appends JSON lines; a line that a kill cut off is ended before, so that the next one stands alone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+b") as stream:
        if stream.tell():
            stream.seek(-1, io.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
        stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
