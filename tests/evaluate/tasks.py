"""Tasks made here, to be asked with the tiny models of the tests: no file is read but their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmframe.tasks.task import Decoding, Example, Task
from tests.cli.served import picture

WORDS = "why is the sky so very blue on a day like this one".split()


class MadeTask(Task):
    """A task of given examples."""

    def __init__(self, name: str, examples: Sequence[Example], metric: str = "ANLS", **facts: Any) -> None:
        self.name, self.about, self.split = name, f"{name}, made for tests", "val"
        self.examples = list(examples)
        self.metric = {"class_path": metric}
        self.decoding = Decoding(max_new_tokens=6)
        self.prompt_digest, self.data_fingerprint = "prompt0", "data0"
        vars(self).update(facts)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def question(key: str, text: str, images: Sequence[Path] = (), **reference: Any) -> Example:
    places = "<image>\n" * len(images)
    return Example(key, ({"from": "human", "value": places + text},), tuple(images), reference or {"answers": ["blue"]})


def questions(folder: Path, count: int = 21, name: str = "made", **facts: Any) -> MadeTask:
    """Texts of many lengths, a third with a picture and a few with two."""
    pictures = [picture(folder / f"{n}.png", 20 + 30 * n, 20, seed=n) for n in range(3)]
    examples = []
    for n in range(count):
        shown = [pictures[0], pictures[2]] if n % 5 == 2 else [pictures[n % 2]] if n % 3 == 1 else []
        examples.append(question(f"q{n}", " ".join(WORDS[: 1 + n * 5 % 12]), shown, answers=["blue", WORDS[n % 12]]))
    return MadeTask(name, examples, **facts)


def choices(count: int = 5) -> MadeTask:
    """Options after a prompt."""
    options = ("blue", "a very long way", "no")
    examples = [
        Example(
            f"c{n}",
            ({"from": "human", "value": f"what is {n}?"},),
            reference={"answer": n % 3, "options": list(options)},
            options=options,
        )
        for n in range(count)
    ]
    return MadeTask("choices", examples, "LikelihoodChoice", mode="likelihood")


def texts(count: int = 5) -> MadeTask:
    """Plain texts."""
    examples = []
    for n in range(count):
        text = " ".join(WORDS[: 2 + n])
        examples.append(Example(f"t{n}", ({"from": "human", "value": text},), reference={"bytes": len(text)}))
    return MadeTask("texts", examples, "Perplexity", mode="perplexity")
