"""A conversation over a kept cache: each turn costs its own tokens and gives what a fresh start would give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from mmframe.batch import Sample
from mmframe.errors import UserError
from mmframe.kinds import TokenKind
from mmframe.processing.row import PLACEHOLDER
from mmframe.sampling import SamplingParams

if TYPE_CHECKING:
    from mmframe.engine import Answer, Engine
    from mmframe.generation import Step

SMALLEST_CACHE = 1024
"""Tokens; a cache that is too small is replaced by one of at least twice its size."""


class Chat:
    """A conversation. Make it with `Engine.chat`.

    Every turn writes the whole conversation as a prompt, keeps what the cache holds of its beginning (the same
    tokens, of the same kinds, the same pictures) and runs the rest, which takes the way of any prompt: pictures may
    come in any turn. The released code goes wrong there: it treats whatever follows a cache as text.

    Attributes:
        history: turns {"from": "system", "human" or "gpt", "value": text}; pictures stand as <image>.
        images: uint8 tiles [n, 3, h, w] of each picture, in the order of the <image>s. Both may be edited between
            turns, say to take one back.
        prompt_tokens: length of the last prompt.
        reused: how many of them the cache held already.
    """

    def __init__(self, engine: Engine, system: str | None = None, max_tiles: int = 12) -> None:
        if max_tiles < 1:
            raise UserError(f"chat: max_tiles={max_tiles} must be at least 1")
        self.engine, self.system, self.max_tiles = engine, system, max_tiles
        self.reset()

    def reset(self) -> None:
        """Forgets everything but the system message."""
        self.history: list[dict[str, str]] = [] if self.system is None else [{"from": "system", "value": self.system}]
        self.images: list[Tensor] = []
        self.prompt_tokens = self.reused = 0
        self._forget()

    @property
    def answer_tokens(self) -> int:
        """Tokens of the last answer, as far as it went."""
        return len(self._said)

    def _forget(self) -> None:
        self._step: Step | None = None
        self._held: Sample | None = None  # the prompt that the cache begins with
        self._held_images: list[Tensor] = []
        self._said: list[int] = []  # the tokens chosen after it, fed or not

    def say(
        self, text: str, images: Sequence[Image.Image | Tensor] = (), params: SamplingParams | None = None
    ) -> Iterator[str]:
        """One turn of the user; the answer comes in pieces, as from `Engine.stream`.

        The turn is part of the history once its prompt has run; an answer that is broken off counts as far as it went.

        Args:
            text: What the user says; pictures without an <image> in it stand in front.
            images: The turn's pictures, or their uint8 tiles.
            params: Default: greedy.

        Raises:
            UserError: an empty turn, <image>s and pictures that differ in number, or a conversation that has outgrown
                the context. The conversation is as before.
        """
        if not text.strip() and not images:
            raise UserError("chat: the turn is empty; write a question or give an image")
        placed = text.count(PLACEHOLDER)
        if placed not in (0, len(images)):
            raise UserError(f"chat: {placed} {PLACEHOLDER} in the turn but {len(images)} images; make the counts equal")
        front = "" if placed else f"{PLACEHOLDER}\n" * len(images)
        turn = {"from": "human", "value": front + text}
        tiles = [*self.images, *self._cut(images)]
        engine = self.engine
        prompt = engine.processor.encode_prompt(
            [*self.history, turn], tiles, engine.net.patch_embedder, self.max_tiles, key="chat"
        )
        answers = engine.new_answers([prompt], params)
        return self._answer(turn, tiles, prompt, answers[0])

    def _cut(self, images: Sequence[Image.Image | Tensor]) -> list[Tensor]:
        """Tiles of the turn's pictures: cut once, so that later pictures do not change them."""
        embedder = self.engine.net.patch_embedder
        if images and embedder is None:
            raise UserError("chat: an image was given, but the model has no patch embedder")
        if embedder is None:
            return []
        share = max(1, self.max_tiles // max(1, len(images)))
        cut, side = self.engine.processor.cut, embedder.image_size
        return [image if isinstance(image, Tensor) else cut(image, side, share) for image in images]

    def _answer(self, turn: dict[str, str], tiles: list[Tensor], prompt: Sample, answer: Answer) -> Iterator[str]:
        logits_BV = self.prefill(prompt, tiles, answer.room)
        self.history.append(turn)
        self.images = tiles
        self._said = answer.ids
        assert self._step is not None
        pieces: list[str] = []
        try:
            for (piece,) in self.engine.decode(self._step, logits_BV, [answer]):
                pieces.append(piece)
                if piece:
                    yield piece
        finally:
            self.history.append({"from": "gpt", "value": "".join(pieces)})

    def prefill(self, prompt: Sample, tiles: list[Tensor], room: int) -> Tensor:
        """Brings the cache to the end of a prompt with `room` tokens to spare; logits [1, V] after it.

        Args:
            prompt: The whole conversation.
            tiles: Its pictures.
            room: Tokens that the answer may need.
        """
        kept = self._common_beginning(prompt, tiles)
        step, kept = self._make_room(len(prompt) + room, kept)
        self._forget()  # what goes wrong from here on leaves no half-written cache behind
        step.cache.truncate([kept])
        logits_BV = self.engine.prefill([_rest(prompt, kept, tiles)], step.cache)
        self._step, self._held, self._held_images = step, prompt, list(tiles)
        self.prompt_tokens, self.reused = len(prompt), kept
        return logits_BV

    def _common_beginning(self, prompt: Sample, tiles: list[Tensor]) -> int:
        """Tokens of the prompt that the cache holds already; the last is always left, for its logits."""
        held = self._held
        if held is None or self._step is None or self._turns_with_length(len(prompt)):
            return 0
        cache = self._step.cache
        said = torch.tensor(self._said[: cache.lengths[0] - len(held)], dtype=torch.int64)
        ids = torch.cat([held.ids, said])
        kinds = torch.cat([held.kinds, torch.full((len(said),), TokenKind.TEXT, dtype=torch.int8)])
        blocks = torch.cat([held.blocks, torch.full((len(said),), -1, dtype=torch.int32)])
        n = min(len(ids), len(prompt) - 1)
        same_image = torch.tensor([a is b for a, b in zip(tiles, self._held_images, strict=False)] + [True])
        known = min(len(tiles), len(self._held_images))
        same = (ids[:n] == prompt.ids[:n]) & (kinds[:n] == prompt.kinds[:n]) & (blocks[:n] == prompt.blocks[:n])
        # pictures are the same if they are the same object; -1, no picture, finds the True at the end
        same &= (blocks[:n] < known) & same_image[blocks[:n].clamp(max=known).long()]
        kept = int(same.long().cumprod(0).sum())
        block = int(prompt.blocks[kept])
        if block >= 0:  # never begin inside a picture
            kept = int((prompt.blocks == block).nonzero()[0])
        return kept

    def _turns_with_length(self, length: int) -> bool:
        """Whether at this length the rotary base depends on it (dynamic NTK): what was computed for a shorter context
        is then not what a fresh forward computes."""
        return self.engine.net.backbone.new_cache(0, length).raw_keys

    def _make_room(self, capacity: int, kept: int) -> tuple[Step, int]:
        """A step with a cache of at least this capacity, and how many of the `kept` tokens it holds."""
        old = self._step
        if old is not None and old.cache.capacity >= capacity:
            return old, kept
        wanted = max(capacity, SMALLEST_CACHE, 2 * old.cache.capacity if old is not None else 0)
        limit = self.engine.max_context
        step = self.engine.new_step(1, wanted if limit is None else max(capacity, min(wanted, limit)))
        if old is None or not kept or old.cache.raw_keys != step.cache.raw_keys:
            return step, 0
        step.cache.take(old.cache)
        return step, kept


def _rest(prompt: Sample, kept: int, tiles: Sequence[Tensor]) -> Sample:
    """The prompt without its first `kept` tokens, with the tiles and numbers of its own pictures."""
    before = int(prompt.blocks[:kept].max()) + 1 if kept else 0
    columns = {
        name: value[kept:] for name, value in vars(prompt).items() if isinstance(value, Tensor) and name != "tiles"
    }
    first_tile = sum(len(t) for t in tiles[:before])
    for name, gone in (("blocks", before), ("tile_index", first_tile)):
        columns[name] = torch.where(columns[name] >= 0, columns[name] - gone, -1)
    return replace(prompt, **columns, tiles=prompt.tiles[first_tile:])
