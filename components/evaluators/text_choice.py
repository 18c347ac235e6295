"""Which of four definitions is the word's: a multiple-choice score of language that needs no benchmark to download."""

from __future__ import annotations

import hashlib
import math
import statistics

from components.evaluators.common import losses, percent, read_texts
from mmframe.batch import IGNORE, Sample
from mmframe.contracts import Evaluator
from mmframe.data.files import expand
from mmframe.errors import UserError
from mmframe.loading import LoadedModel
from mmframe.processing import ChatProcessor
from mmframe.registry import register


@register("evaluator")
class TextChoice(Evaluator):
    """Multiple choice from a dictionary: which of four definitions is the word's; chance is 1 / candidates.

    The texts are `word: definition.`, one a line (the WordNet of the offline corpus). Items, distractors (definitions
    of other words of the file, of like length) and their order follow from the texts by hashing, so they are the same
    anywhere. A candidate's score is the log-likelihood of the definition's tokens after `word:`; the highest is the
    answer. Gives `accuracy` (percent) with its standard error `accuracy_se` and number `accuracy_n`, and `margin`, the
    mean of the right score minus the best wrong one (nats; it moves before the accuracy does), with `margin_se`.

    Args:
        texts: A JSONL file of such texts, or of anything before and after a first `: `.
        key: Key of the text in a line.
        items: Number of questions.
        candidates: Definitions to choose from, the right one among them.
        normalise: ``gain``: the score is what the word adds to the log-likelihood of a token of the definition
            (pointwise mutual information), so that common phrases win nothing; twice the work. ``tokens``: the
            log-likelihood a token (as acc_norm of common harnesses); ``none``: the sum. SmolLM2-135M has 67, 46 and
            46.5 % on 200 items.
        rows: Candidates of a forward pass.
    """

    toy_args = {"items": 4}

    def __init__(
        self,
        texts: str = "offline:wordnet/train.jsonl",
        key: str = "text",
        items: int = 200,
        candidates: int = 4,
        normalise: str = "gain",
        rows: int = 16,
    ) -> None:
        if items < 1 or candidates < 2 or rows < 1:
            raise UserError(f"TextChoice: items={items}, rows={rows} must be at least 1, candidates={candidates} 2")
        if normalise not in ("tokens", "none", "gain"):
            raise UserError(f"TextChoice: normalise={normalise!r} is not known; use tokens, none or gain")
        self.texts, self.key, self.items, self.candidates = texts, key, items, candidates
        self.normalise, self.rows = normalise, rows

    def metrics(self) -> list[str]:
        return ["accuracy", "accuracy_se", "accuracy_n", "margin", "margin_se"]

    def files(self) -> list[str]:
        return expand(self.texts)

    def evaluate(self, model: LoadedModel) -> dict[str, float]:
        questions = self.questions()
        pairs = [(word, text) for word, texts in questions for text in texts]
        scores = self._scores(model, pairs)
        right, margins = [], []
        for start in range(0, len(scores), self.candidates):
            first, *others = scores[start : start + self.candidates]
            right.append(first > max(others))
            margins.append(first - max(others))
        figures = percent("accuracy", right) | {"margin": statistics.fmean(margins)}
        if len(margins) > 1:
            figures["margin_se"] = statistics.stdev(margins) / math.sqrt(len(margins))
        return figures

    def questions(self) -> list[tuple[str, list[str]]]:
        """(word, [its definition, wrong ones...]) of each item.

        Raises:
            UserError: too few texts of that form.
        """
        entries = {}
        for line in read_texts(self.texts, self.key):
            word, _, text = line.partition(": ")
            text = text.partition('; "')[0].rstrip(".")  # without its examples, which may name the word
            if 4 <= len(text.split()) <= 16 and word.casefold() not in text.casefold():
                entries.setdefault(word.casefold(), (word, text))
        entries = sorted(entries.values(), key=lambda entry: _hash(*entry))
        if len(entries) < self.items * self.candidates:
            raise UserError(
                f"TextChoice: {self.texts} has {len(entries):,} definitions of 4 to 16 words, "
                f"{self.items} items of {self.candidates} candidates need {self.items * self.candidates:,}"
            )
        # of like length: an item is a run of the drawn entries in the order of their lengths, its word the first drawn
        drawn = sorted(entries[: self.items * self.candidates], key=lambda entry: len(entry[1].split()))
        groups = [drawn[start : start + self.candidates] for start in range(0, len(drawn), self.candidates)]
        chosen = [sorted(group, key=lambda entry: _hash(entry[1], entry[0])) for group in groups]
        return [(group[0][0], [text for _, text in group]) for group in chosen]

    def _scores(self, model: LoadedModel, pairs: list[tuple[str, str]]) -> list[float]:
        given = [encoded(model.processor, word, text) for word, text in pairs]
        found = losses(model, given, self.rows)
        if self.normalise == "none":
            return [-float(loss.sum()) for loss in found]
        alone = [0.0] * len(pairs)
        if self.normalise == "gain":
            bare = losses(model, [encoded(model.processor, "", text) for _, text in pairs], self.rows)
            alone = [float(loss.mean()) for loss in bare]
        return [base - float(loss.mean()) for base, loss in zip(alone, found, strict=True)]


def encoded(processor: ChatProcessor, word: str, text: str) -> Sample:
    """`word: text` with labels on the text alone."""
    before = f"{word}:"
    bos = [processor.tokenizer.bos_id] if processor.template.bos and processor.tokenizer.bos_id is not None else []
    head, tail = bos + processor.tokenizer.encode(before), processor.tokenizer.encode(f" {text}")
    ids = head + tail
    labels = [IGNORE] * (len(head) - 1) + tail + [IGNORE]
    return Sample.from_ids(ids, labels=labels, key=word)


def _hash(*parts: str) -> bytes:
    return hashlib.sha256("\n".join(parts).encode()).digest()
