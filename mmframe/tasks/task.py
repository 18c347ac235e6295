"""What a task is, once its YAML and its files are read. No torch here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmframe.data.pictures import Picture

MODES = ("generate", "likelihood", "perplexity")


@dataclass(frozen=True)
class Example:
    """One question of a task.

    Attributes:
        id: unique in its task; the official one where there is one.
        turns: {"from": "system" | "human" | "gpt", "value": text}, the user's last; `<image>` stands for a picture. In
            mode perplexity one turn, which is the text itself.
        images: its pictures in the order of their placeholders, not decoded.
        reference: plain JSON data with the keys that the task's metric needs.
        options: mode likelihood: the continuations to compare.
    """

    id: str
    turns: tuple[Mapping[str, str], ...]
    images: tuple[Picture, ...] = ()
    reference: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """What the user says last."""
        return self.turns[-1]["value"]


@dataclass(frozen=True)
class Decoding:
    """How answers are made: greedy, as the benchmarks ask for.

    Attributes:
        max_new_tokens: longest answer, tokens.
        stop: texts that end it beside the model's own end of turn.
    """

    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()


class Task(ABC):
    """A benchmark, ready to be asked: what the runner, the callbacks, the report and the bridge see.

    Attributes:
        name: as on the command line and in records, e.g. ``docvqa_val``.
        about: one line: benchmark, split, source.
        split: ``val``, ``test``...
        mode: ``generate``: a text is generated and the metric gets it. ``likelihood``: the metric gets, of each
            option, the sum of log-likelihoods in nats and the number of tokens after the prompt. ``perplexity``: the
            metric gets the negative log-likelihood of the text in nats; the runner adds `tokens` to the reference.
        metric: registered class and arguments: {"class_path": bare name, "init_args": {...}}.
        decoding: of mode generate.
        max_tiles: image budget of an example, as the benchmark's published numbers have it; None: the model's own.
        scored: whether the answers are public; of a task that is not, answers can be generated but not scored.
        submission: name of the file that the benchmark's server takes, .json or .tsv; None: it has no server.
        judge: None, or what an LLM judge is asked, {"template": name or text} (mmframe.evaluate.judge); without an
            endpoint rules alone score.
        prompt_digest: hash of all in the YAML that decides what is asked: equal digests and data, equal prompts.
        data_fingerprint: hash of the files that were read (names, sizes, and their content where it is small).
    """

    name: str
    about: str
    split: str
    mode: str = "generate"
    metric: Mapping[str, Any]
    decoding: Decoding = Decoding()
    max_tiles: int | None = None
    judge: Mapping[str, Any] | None = None
    scored: bool = True
    submission: str | None = None
    prompt_digest: str
    data_fingerprint: str

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples, known without decoding a picture."""

    @abstractmethod
    def __getitem__(self, index: int) -> Example:
        """Example `index` in the official order."""

    def submitted(self, index: int, answer: str) -> dict[str, Any]:
        """The row of an example's answer in a `submission`."""
        return {"id": self[index].id, "answer": answer}

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))
