"""Asks a model questions about pictures, and measures its language: what the demo and its report rest on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmframe.batch import Batch, Sample
from mmframe.errors import UserError
from mmframe.generation import generate, prefill
from mmframe.model import MultimodalLM
from mmframe.processing import ChatProcessor

Picture = Image.Image | Tensor


@dataclass(frozen=True)
class Asked:
    """One question about one picture. `image` is an index into the pictures given."""

    image: int
    question: str


@torch.no_grad()
def answer_questions(
    net: MultimodalLM,
    processor: ChatProcessor,
    pictures: Sequence[Picture],
    asked: Sequence[Asked],
    max_new_tokens: int = 8,
    max_tiles: int = 1,
    images_at_once: int = 32,
    questions_at_once: int = 128,
    blind: bool = False,
) -> list[str]:
    """Free greedy answers, stripped, in the order asked.

    A picture is run once and its keys and values are forked for its questions, which changes nothing in the
    answers (a test shows it) and saves most of the work.

    Args:
        net: The model; is put in eval mode and back.
        processor: Its processor.
        pictures: Pictures, or uint8 tiles [n, 3, h, w].
        asked: The questions.
        max_new_tokens: Longest answer, tokens.
        max_tiles: Image budget of a picture.
        images_at_once: Pictures of one prefill.
        questions_at_once: Questions of one batch.
        blind: Show a black picture of the same size instead.
    """
    was_training = net.training
    net.eval()
    answers: dict[int, str] = {}
    by_image: dict[int, list[int]] = {}
    for number, one in enumerate(asked):
        by_image.setdefault(one.image, []).append(number)
    images = sorted(by_image)
    for start in range(0, len(images), images_at_once):
        chunk = images[start : start + images_at_once]
        trunks: list[Sample] = []
        rests: list[tuple[int, int, Sample]] = []  # question number, row of its trunk, tokens after the image
        for row, image in enumerate(chunk):
            tiles = _tiles(net, processor, pictures[image], max_tiles, blind)
            numbers = by_image[image]
            questions = [asked[number].question for number in numbers]
            trunk, rest = processor.encode_shared_prompt(questions, [tiles], net.patch_embedder, max_tiles)
            trunks.append(trunk)
            rests += [(number, row, sample) for number, sample in zip(numbers, rest, strict=True)]
        room = max(len(t) for t in trunks) + max(len(rest) for _, _, rest in rests) + max_new_tokens
        cache = prefill(net, trunks, room)
        for first in range(0, len(rests), questions_at_once):
            part = rests[first : first + questions_at_once]
            prefix = cache.select([row for _, row, _ in part])
            prompts = [rest for _, _, rest in part]
            made = generate(net, prompts, max_new_tokens, processor.stop_ids, prefix=prefix)
            for (number, _, _), ids in zip(part, made.ids, strict=True):
                answers[number] = processor.tokenizer.decode(ids).strip()
    net.train(was_training)
    return [answers[number] for number in range(len(asked))]


def _tiles(net: MultimodalLM, processor: ChatProcessor, picture: Picture, max_tiles: int, blind: bool) -> Tensor:
    if net.patch_embedder is None:
        raise UserError("evaluation: questions about pictures, but the model has no patch embedder")
    tiles = picture if isinstance(picture, Tensor) else processor.cut(picture, net.patch_embedder.image_size, max_tiles)
    return torch.zeros_like(tiles) if blind else tiles


@torch.no_grad()
def text_logits(net: MultimodalLM, processor: ChatProcessor, texts: Sequence[str], rows: int = 8) -> Iterator[Tensor]:
    """Logits [S, V] of text-only batches, at every position that has a next token."""
    was_training = net.training
    net.eval()
    device = next(net.parameters()).device
    for start in range(0, len(texts), rows):
        samples = [processor.encode_text(text) for text in texts[start : start + rows]]
        yield net(Batch.collate(samples).to(device)).logits
    net.train(was_training)


@dataclass(frozen=True)
class LanguageCheck:
    """Language of a model on a fixed corpus.

    nll     mean negative log-likelihood of a token, nats
    digest  SHA-256 over the bits of all logits: equal digests, equal to the last bit
    tokens  tokens predicted
    """

    nll: float
    digest: str
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll)


@torch.no_grad()
def check_language(net: MultimodalLM, processor: ChatProcessor, texts: Sequence[str], rows: int = 8) -> LanguageCheck:
    """Text NLL and a digest of the logits' bits."""
    digest = hashlib.sha256()
    total, count = 0.0, 0
    for start, logits in zip(range(0, len(texts), rows), text_logits(net, processor, texts, rows), strict=True):
        labels = Batch.collate([processor.encode_text(text) for text in texts[start : start + rows]])
        targets = labels.labels[labels.supervised].to(logits.device)
        total += float(F.cross_entropy(logits.float(), targets, reduction="sum"))
        count += targets.numel()
        digest.update(logits.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return LanguageCheck(total / max(1, count), digest.hexdigest(), count)
