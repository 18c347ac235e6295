"""What a stage of the demo is worth: answers, blind answers, language."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from components.routers.modality import SharedRouter
from mmframe.data.demo import Question
from mmframe.evaluation import Asked, answer_questions
from mmframe.loading import LoadedModel, build
from mmframe.model import MultimodalLM


@dataclass(frozen=True)
class Accuracy:
    """Exact match, percent: of all questions, of the open ones, of those answered by yes or no."""

    all: float
    open: float
    yes_no: float
    questions: int

    @classmethod
    def of(cls, questions: Sequence[Question], answers: Sequence[str]) -> Accuracy:
        right = [answer == question.answer for question, answer in zip(questions, answers, strict=True)]

        def percent(wanted: list[bool]) -> float:
            chosen = [r for r, w in zip(right, wanted, strict=True) if w]
            return 100 * sum(chosen) / len(chosen) if chosen else float("nan")

        is_open = [question.open for question in questions]
        return cls(
            all=percent([True] * len(right)),
            open=percent(is_open),
            yes_no=percent([not o for o in is_open]),
            questions=len(right),
        )


def text_only(train: Sequence[Question], questions: Sequence[Question]) -> Accuracy:
    """Accuracy of the best answer to each wording, counted on the training questions: nothing below it is sight."""
    by_wording: dict[str, Counter[str]] = defaultdict(Counter)
    for question in train:
        by_wording[question.question][question.answer] += 1
    answers = [by_wording[q.question].most_common(1)[0][0] if q.question in by_wording else "" for q in questions]
    return Accuracy.of(questions, answers)


def base_language_model(like: LoadedModel, spec: Mapping[str, Any]) -> MultimodalLM:
    """The pretrained LLM alone, without experts, in the dtype of `like`: what text must still look like.

    Args:
        like: A trained stage.
        spec: How its parts were constructed (read_weights metadata).
    """
    backbone, embedder = build(spec["backbone"]), build(spec["patch_embedder"])
    dtype = next(like.net.parameters()).dtype
    return MultimodalLM(backbone, embedder, SharedRouter(), "torch").to(dtype).eval()


class Gallery:
    """Decoded tiles of the pictures that questions are about, each decoded once."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._tiles: dict[Path, Tensor] = {}

    def tiles(self, path: Path) -> Tensor:
        if path not in self._tiles:
            side = self.model.net.patch_embedder.image_size
            with Image.open(path) as image:
                self._tiles[path] = self.model.processor.cut(image, side, 1)
        return self._tiles[path]


@torch.no_grad()
def ask(model: LoadedModel, questions: Sequence[Question], blind: bool = False) -> list[str]:
    """Free greedy answers of a model to the questions, in order."""
    gallery = Gallery(model)
    paths = list(dict.fromkeys(question.image for question in questions))
    number = {path: index for index, path in enumerate(paths)}
    pictures = [gallery.tiles(path) for path in paths]
    asked = [Asked(number[question.image], question.question) for question in questions]
    return answer_questions(model.net, model.processor, pictures, asked, blind=blind)


def first_images(questions: Sequence[Question], count: int) -> list[Question]:
    """The questions of the first `count` pictures."""
    kept = set(list(dict.fromkeys(question.image for question in questions))[:count])
    return [question for question in questions if question.image in kept]


def flops_per_token(net: MultimodalLM, image_share: float, trains_text: bool) -> float:
    """Floating-point operations of the layers' matrices for one trained token: 2 per weight forward, 2 for the input's
    gradient, 2 for the weight's where it trains. Attention scores, norms, head and embedder are left out (under 10 %).
    """
    per_token = {"text": 0.0, "visual": 0.0}
    for _, _, experts in net.backbone.sites():
        sizes = {name: sum(p.numel() for p in e.parameters() if p.ndim == 2) for name, e in experts.items()}
        per_token["text"] += sizes["text"]
        per_token["visual"] += sizes.get("visual", sizes["text"])
    text = per_token["text"] * (6 if trains_text else 4)
    visual = per_token["visual"] * (6 if len(net.router.experts) > 1 or trains_text else 4)
    return (1 - image_share) * text + image_share * visual
