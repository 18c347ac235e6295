"""What the engine's tests share: a tiny model that writes letters, its processor, prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from mmframe.batch import Sample
from mmframe.engine import Engine
from mmframe.model import MultimodalLM
from mmframe.processing import ByteTokenizer, ChatProcessor
from tests.helpers import QKV_FFN, tiny_internlm2, tiny_net

VOCAB = 264  # of the ByteTokenizer
LONG = 24
"""Trained context of a `long` model: prompts or their answers outgrow it, so that the rotary base depends on the
length."""


LETTERS = "abcdefghijklmnopqrstuvwxyz ."


def make_net(attention: str = "causal", long: bool = False, context: int = 4096, **options: Any) -> MultimodalLM:
    """Distinct experts at q, k, v and ffn. What is not in LETTERS gets a logit of 0, which hardly ever wins."""
    trained = LONG if long else context
    backbone = tiny_internlm2(vocab_size=VOCAB, attention=attention, max_positions=trained, **options)
    net = tiny_net(QKV_FFN, backbone=backbone, distinct=True)
    mute = torch.ones(VOCAB, dtype=torch.bool)
    mute[list(LETTERS.encode())] = False
    with torch.no_grad():
        net.get_parameter("backbone.output.weight")[mute] = 0.0
    return net


def make_processor(**options: Any) -> ChatProcessor:
    settings: dict[str, Any] = dict(system="", image_start="<img>", image_end="</img>")
    return ChatProcessor(ByteTokenizer(), "chatml", **(settings | options))


def make_engine(net: MultimodalLM | None = None, **options: Any) -> Engine:
    """Rows may outgrow the context that the rotary embedding was made for."""
    return Engine(net or make_net(), make_processor(), **({"max_context": 4096} | options))


def picture(seed: int = 0, size: tuple[int, int] = (8, 8)) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def ask(engine: Engine, text: str, images: Sequence[Image.Image] = (), max_tiles: int = 6) -> Sample:
    return engine.processor.encode_prompt(text, images, engine.net.patch_embedder, max_tiles, key=text)


def ragged(engine: Engine) -> list[Sample]:
    """Texts and pictures, short and long, in one batch."""
    return [
        ask(engine, "hi"),
        ask(engine, "what is that?", [picture(1)]),
        ask(engine, "tell me of the sea"),
        ask(engine, "<image>\nand <image>\nin detail", [picture(2, (16, 8)), picture(3)]),
        ask(engine, "why?", [picture(4, (8, 24))]),
    ]
