"""Shared by the data tests: a patch embedder that only counts, the tokenizer of the fixtures, small JSONL sets."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from mmframe.processing import ByteTokenizer, ChatProcessor, Tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures" / "reference"


def embedder(image_size: int = 16, tokens: int = 4) -> Any:
    """Says how many slots a tile needs, and nothing else."""
    return SimpleNamespace(image_size=image_size, num_tokens=lambda height, width: tokens)


def processor(template: str = "plain", **options: Any) -> ChatProcessor:
    return ChatProcessor(ByteTokenizer(), template, **options)


def fixture_text(name: str) -> Any:
    return json.loads((FIXTURES / name).read_text(encoding="utf-8"))


class FixtureTokenizer(Tokenizer):
    """The toy tokenizer with which the reference's prompts were recorded."""

    def __init__(self) -> None:
        spec = importlib.util.spec_from_file_location("toy_tokenizer", FIXTURES / "toy_tokenizer.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.toy = module.ToyTokenizer()
        self.specials = dict(module.SPECIALS)
        self.vocab_size, self.bos_id, self.eos_id, self.pad_id = 512, 1, 2, 2

    def encode(self, text: str, special: bool = False) -> list[int]:
        return self.toy.encode(text)[1:] if special else [16 + byte for byte in text.encode()]

    def decode(self, ids: Any, special: bool = False) -> str:
        return self.toy.decode(ids, skip_special_tokens=not special)


def picture(size: tuple[int, int] = (20, 20), colour: tuple[int, int, int] = (200, 30, 60)) -> Image.Image:
    return Image.new("RGB", size, colour)


def write_set(folder: Path, name: str = "train", records: int = 7, questions: int = 5) -> Path:
    """A JSONL file of pictures with questions, plus one conversation and one text-only record."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for r in range(records):
        picture(colour=(30 * r % 256, 90, 200)).save(folder / f"{name}-{r}.png")
        asked = [[f"q{q}?", ("yes", "no", "red", "blue")[(q + r) % 4]] for q in range(questions)]
        lines.append({"id": f"p{r}", "image": f"{name}-{r}.png", "questions": asked})
    talk = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a square"}]
    lines.append({"id": "talk", "image": [f"{name}-0.png"], "conversations": talk})
    text = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    lines.append({"id": "text", "conversations": text})
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
