"""A result with drawn pictures, and its task: what the page of `mmframe evaluate browse` is tested with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from mmframe.tasks.task import Example, Task

from .made import answer, result, write

COLOURS = {"red": (208, 60, 50), "blue": (50, 90, 200), "green": (60, 150, 80), "yellow": (235, 195, 60)}
EVIL = "<script>document.title = 'taken'</script></script><img src=x onerror=\"document.title='taken'\"> {{data}} &amp;"


class DrawnTask(Task):
    """Files of a folder."""

    def __init__(self, examples: list[Example], data_fingerprint: str) -> None:
        self.examples, self.data_fingerprint = examples, data_fingerprint

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def draw(file: Path, colour: str, size: tuple[int, int] = (480, 320)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (244, 240, 230))
    wide, high = size
    ImageDraw.Draw(image).ellipse((wide * 0.2, high * 0.15, wide * 0.7, high * 0.9), fill=COLOURS[colour])
    image.save(file)
    return file


def drawn_result(root: Path, count: int = 6, **changes: Any) -> tuple[Path, DrawnTask]:
    """Right, wrong, partly right and unmatched answers in turn; then one with markup, one that could not be asked."""
    rows, examples = [], []
    names = list(COLOURS)
    files = [
        draw(root / "pictures" / f"{n}.png", names[n % 4], (480, 320 + 40 * (n % 3))) for n in range(min(count, 24))
    ]
    for number in range(count):
        colour, other = names[number % 4], names[(number + 1) % 4]
        file = files[number % 24]
        said = (colour, f"It is {other}, I think.", f"{colour}ish", "That is hard to say.")[number % 4]
        score = {"score": (1.0, 0.0, 0.8, 0.0)[number % 4], "chosen": said[:12], "unmatched": number % 4 == 3}
        reference = {
            "answers": [colour] * 8 + [f"bright {colour}", "ball"],
            "category": ("colour", "shape")[number % 2],
        }
        prompt = f"What colour is ball {number}?\nAnswer the question using a single word or phrase."
        rows.append(answer(f"q{number}", score, prompt=prompt, images=[str(file)], answer=said, reference=reference))
        examples.append(Example(f"q{number}", ({"from": "human", "value": prompt},), (file,)))
    evil = {"prompt": EVIL, "answer": EVIL, "reference": {"answers": [EVIL], "category": EVIL}}
    rows.append(answer("evil", {"score": 0.0, "chosen": EVIL}, images=["gone.png"], **evil))
    examples.append(Example("evil", ({"from": "human", "value": EVIL},), (root / "gone.png",)))
    rows.append({"id": "broken", "error": "the picture is cut off"})
    made = result("drawn_val", "vqa_accuracy", 45.0, n=len(rows), unmatched=count // 4, errors=1, **changes)
    return write(root / "results", made, rows), DrawnTask(examples, made.data_fingerprint)
