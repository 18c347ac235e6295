"""One turn of a conversation, timed: what the terminal and the page show beneath an answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmframe.cli.picture_facts import PictureFacts, picture_facts
from mmframe.cli.serving import Served

if TYPE_CHECKING:
    from PIL import Image

    from mmframe.dialogue import Chat
    from mmframe.sampling import SamplingParams


@dataclass
class TurnFacts:
    """Numbers of a turn; times in seconds.

    Attributes:
        tokens: of the answer.
        prompt: tokens of the whole conversation before it, `reused` of them held by the cache already.
        pictures: of this turn.
        first: from the question to the first piece of the answer.
        rest: from there to its end.
    """

    tokens: int = 0
    prompt: int = 0
    reused: int = 0
    pictures: tuple[PictureFacts, ...] = ()
    first: float = 0.0
    rest: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first, which stands for the prompt."""
        return (self.tokens - 1) / self.rest if self.tokens > 1 and self.rest > 0 else 0.0

    @property
    def image_tokens(self) -> int:
        return sum(picture.tokens for picture in self.pictures)

    @property
    def tiles(self) -> int:
        return sum(picture.tiles for picture in self.pictures)

    def __str__(self) -> str:
        parts = [f"{self.tokens} token{'s' * (self.tokens != 1)}"]
        if self.pictures:
            parts.append(f"{self.image_tokens} image tokens in {self.tiles} tile{'s' * (self.tiles != 1)}")
        parts.append(f"first after {self.first:.2f} s")
        if self.tokens_per_second:
            parts.append(f"{self.tokens_per_second:.1f} tok/s")
        parts.append(f"prompt {self.prompt} tokens" + (f", {self.reused} from the cache" if self.reused else ""))
        return ", ".join(parts)


class Turn:
    """Asks, and hands on the pieces of the answer; `facts` grows with them.

    Args:
        served: The model.
        chat: The conversation.
        text: What the user says.
        images: Pictures of this turn.
        params: How to answer.

    Raises:
        UserError: as Chat.say, before anything runs.
    """

    def __init__(
        self, served: Served, chat: Chat, text: str, images: Sequence[Image.Image], params: SamplingParams
    ) -> None:
        share = max(1, chat.max_tiles // max(1, len(images)))
        pictures = tuple(picture_facts(image.size, served.model, share) for image in images)
        self.facts = TurnFacts(pictures=pictures)
        self.chat = chat
        self._begun = time.monotonic()
        self._pieces = chat.say(text, images, params)

    def __iter__(self) -> Iterator[str]:
        """The pieces; leaving the loop early ends the answer, which counts as far as it went."""
        facts, first = self.facts, None
        try:
            for piece in self._pieces:
                if first is None:
                    first = time.monotonic()
                    facts.first, facts.prompt, facts.reused = first - self._begun, *self._of_prompt()
                self._count(first)
                yield piece
            facts.prompt, facts.reused = self._of_prompt()
            self._count(first)
        finally:
            self._pieces.close()  # type: ignore[attr-defined]

    def _of_prompt(self) -> tuple[int, int]:
        return self.chat.prompt_tokens, self.chat.reused

    def _count(self, first: float | None) -> None:
        now = time.monotonic()
        self.facts.tokens = self.chat.answer_tokens
        self.facts.rest = now - (first or now)
