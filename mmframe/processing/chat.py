"""ChatProcessor: a conversation and its images become one row of tokens, with labels on the answers alone.

The same code makes training rows, rows of several questions that share an image, and prompts for generation, so
they cannot differ.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from mmframe import images as pictures
from mmframe.batch import Sample
from mmframe.contracts import Component, PatchEmbedder
from mmframe.errors import UserError
from mmframe.processing.row import PLACEHOLDER, Row
from mmframe.processing.templates import TemplateName, get_template
from mmframe.processing.tokenizer import Tokenizer
from mmframe.registry import register

Turn = Mapping[str, str]
"""{"from": "human" or "gpt", "value": text}; the first turn may be {"from": "system", ...}."""


AnyRow = TypeVar("AnyRow", bound=Row)
_SHORT, _MANY = 64, 10_000  # characters; pieces


@register("processor")
class ChatProcessor(Component):
    """Conversation + images -> Sample.

    Args:
        tokenizer: Text to ids.
        template: Words around the turns: internlm2-chat (Mono-InternVL), chatml, smollm2, llama3, plain (image,
            question, line break, answer), or one of your own (register_template).
        mean: Per channel, pixels in 0..1; default ImageNet's.
        std: Per channel, pixels in 0..1; default ImageNet's.
        subtract_median: Take away each picture's own median colour before mean and std (flat backgrounds become 0).
        image_start: Special token before the slots of an image, or null for none.
        image_end: Special token after the slots of an image, or null for none.
        system: System message; null takes the template's, "" writes none.
        thumbnail: Append the whole picture as the last tile when it is cut into several.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: TemplateName = "chatml",
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        subtract_median: bool = False,
        image_start: str | None = None,
        image_end: str | None = None,
        system: str | None = None,
        thumbnail: bool = True,
    ) -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UserError(f"processor: mean={list(mean)} and std={list(std)} must be 3 numbers each, std above 0")
        self.tokenizer = tokenizer
        self.template = get_template(template)
        self.mean, self.std, self.subtract_median = tuple(mean), tuple(std), subtract_median
        self.thumbnail = thumbnail
        self._pieces: dict[tuple[str, bool], list[int]] = {}
        self.system = self.template.system if system is None else system
        self.start_ids = [] if image_start is None else [tokenizer.special_id(image_start)]
        self.end_ids = [] if image_end is None else [tokenizer.special_id(image_end)]
        marker = self.template.answer_end
        self.end_id = tokenizer.eos_id if marker is None else tokenizer.special_id(marker)
        if self.template.bos and tokenizer.bos_id is None:
            raise UserError(f"template {template!r} opens with a bos token, but {type(tokenizer).__name__} has none")

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a generated answer."""
        return tuple(sorted({self.end_id, self.tokenizer.eos_id}))

    def piece_ids(self, text: str, special: bool) -> list[int]:
        """Ids of a piece of a row. Short ones are remembered, up to a number: those of the template, prompts and short
        answers stand in nearly every row."""
        known = self._pieces.get((text, special))
        if known is None:
            known = self.tokenizer.encode(text, special)
            if len(text) <= _SHORT and len(self._pieces) < _MANY:
                self._pieces[text, special] = known
        return known

    def cut(self, image: Image.Image, tile: int, max_tiles: int) -> Tensor:
        """Tiles of a picture, uint8 [n, 3, tile, tile]; `encode` takes them in place of the picture."""
        return pictures.cut_tiles(image, tile, max_tiles, self.thumbnail)

    def normalize(self, tiles: Tensor, image_tiles: Sequence[int] = ()) -> Tensor:
        """uint8 tiles [n, 3, h, w] to the float32 that the model is given, on any device.

        Args:
            tiles: of one picture or several.
            image_tiles: number of tiles of each picture; empty for one picture.
        """
        if self.subtract_median and len(image_tiles) > 1:
            return torch.cat([self.normalize(part) for part in tiles.split(list(image_tiles))])
        return pictures.normalize(tiles, self.mean, self.std, self.subtract_median)

    def encode(
        self,
        conversation: Sequence[Turn],
        images: Sequence[Image.Image | Tensor | int],
        embedder: PatchEmbedder | None,
        max_tiles: int = 1,
        key: str = "",
    ) -> Sample:
        """A training row; what the assistant says and the token that ends it are supervised, nothing else.

        Args:
            conversation: turns; the k-th <image> in the user's turns is the k-th image. One image without any
                <image> stands before the first question.
            images: pictures, or their uint8 tiles from `cut`, or the number of tiles of each: then the sample comes
                without tiles, which the caller has and adds.
            embedder: says the tile size and how many slots a tile needs; None for a model that reads text only.
            max_tiles: most tiles of the row's pictures, shared evenly among them; thumbnails not counted.
            key: name of the sample in error messages.

        Raises:
            UserError: placeholders and images differ in number, or the turns do not alternate.
        """
        return self.row(conversation, images, embedder, max_tiles, key).sample()

    def encode_branches(
        self,
        questions: Sequence[tuple[str, str]],
        images: Sequence[Image.Image | Tensor | int],
        embedder: PatchEmbedder | None,
        max_tiles: int = 1,
        key: str = "",
    ) -> Sample:
        """A training row of several questions about the same images, which stand in front once.

        The questions do not see one another: trunk + branch k holds exactly the tokens and positions of a row made
        of question k alone.

        Args:
            questions: (question, answer) pairs, without <image>.

        Raises:
            UserError: no questions, or a question holds <image>.
        """
        row = Row(self, images, embedder, max_tiles, key)
        self._write_branches(row, questions)
        return row.sample()

    def encode_shared_prompt(
        self,
        questions: Sequence[str],
        images: Sequence[Image.Image | Tensor | int],
        embedder: PatchEmbedder | None,
        max_tiles: int = 1,
        key: str = "",
    ) -> tuple[Sample, list[Sample]]:
        """Prompts that share their beginning: (the trunk with the images, the rest of the prompt of each question).

        Trunk + rest k is what `encode_prompt` makes of question k; positions of the rest go on from the trunk's end.
        The trunk need run only once, into a cache (see mmframe.generation.prefill).
        """
        trunk = Row(self, images, embedder, max_tiles, key)
        self._write_trunk(trunk)
        rests = []
        for question in questions:
            rest = Row(self, (), embedder, max_tiles, key, position=len(trunk.ids))
            self._ask(rest, question)
            rest.text(self.template.answer_start, special=True)
            rests.append(rest.sample())
        return trunk.sample(), rests

    def encode_prompt(
        self,
        conversation: str | Sequence[Turn],
        images: Sequence[Image.Image | Tensor | int],
        embedder: PatchEmbedder | None,
        max_tiles: int = 1,
        key: str = "",
    ) -> Sample:
        """The row that a generation starts from: ends where the answer begins, without labels.

        Args:
            conversation: a question, or turns that end with the user's; with several images and no <image> in a
                question given as a string, all stand in front.

        Raises:
            UserError: as `encode`, or the user's last turn is empty.
        """
        if isinstance(conversation, str):
            count = 0 if PLACEHOLDER in conversation else len(images)
            conversation = [{"from": "human", "value": f"{PLACEHOLDER}\n" * count + conversation}]
        turns = _alternating(conversation, len(images), key)
        if turns[-1][0] != "human":
            raise UserError(f"sample {key!r}: a prompt must end with a turn of the user")
        if not turns[-1][1]:
            raise UserError(f"sample {key!r}: the prompt is empty; write a question or give an image")
        row = Row(self, images, embedder, max_tiles, key)
        self._write(row, turns)
        row.text(self.template.answer_start, special=True)
        return row.sample(labelled=False)

    def encode_text(self, text: str, key: str = "") -> Sample:
        """A row of plain text where every token after the first is supervised (language modelling, text NLL)."""
        return self.row(text, (), None, key=key).sample()

    def row(
        self,
        content: Sequence[Turn] | Sequence[tuple[str, str]] | str,
        images: Sequence[Image.Image | Tensor | int],
        embedder: PatchEmbedder | None,
        max_tiles: int = 1,
        key: str = "",
        kind: type[AnyRow] = Row,
    ) -> AnyRow:
        """A training row that is written and not yet made into tensors: to be packed with others, or only counted.

        Args:
            content: what `encode` (turns), `encode_branches` (pairs) or `encode_text` (a text) is given.
            images: pictures, their uint8 tiles, or the number of tiles of each.
            embedder: as `encode`.
            max_tiles: as `encode`.
            key: name of the sample in error messages.
            kind: Row; or Tally, which only counts.

        Raises:
            UserError: as `encode` and `encode_branches`.
        """
        row = kind(self, images, embedder, max_tiles, key)
        if isinstance(content, str):
            bos = [self.tokenizer.bos_id] if self.template.bos and self.tokenizer.bos_id is not None else []
            row.plain(bos + self.tokenizer.encode(content))
        elif content and isinstance(content[0], tuple):
            self._write_branches(row, content)  # type: ignore[arg-type]
        else:
            self._write(row, _alternating(content, len(images), key))  # type: ignore[arg-type]
        return row

    @property
    def _after_image(self) -> str:
        return "\n" if self.template.keep_image_newline else ""

    def _write(self, row: Row, turns: list[tuple[str, str]]) -> None:
        system = turns.pop(0)[1] if turns and turns[0][0] == "system" else self.system
        self._open(row, system)
        for place, (who, text) in enumerate(turns):
            if who == "gpt":
                self._answer(row, text, last=place == len(turns) - 1)
                continue
            row.text(self.template.user_start, special=True)
            first, *others = text.split(PLACEHOLDER)
            row.text(first, special=False)
            for part in others:
                row.image(row.images_placed)
                if part.startswith("\n"):  # in one piece with what follows: several line breaks can be one token
                    part = self._after_image + part[1:]
                row.text(part, special=False)
            row.text(self.template.user_end, special=True)
        row.check_all_placed()

    def _write_branches(self, row: Row, questions: Sequence[tuple[str, str]]) -> None:
        if not questions:
            raise UserError(f"sample {row.key!r}: no questions")
        self._write_trunk(row)
        for number, (question, answer) in enumerate(questions, 1):
            if len(questions) > 1:  # one question is no branch: plain causal attention is enough
                row.start_branch(number)
            self._ask(row, question)
            self._answer(row, answer.strip(), last=True)

    def _write_trunk(self, row: Row) -> None:
        """What questions about the same images share: everything before the question."""
        self._open(row, self.system)
        row.text(self.template.user_start, special=True)
        for index in range(len(row.images)):
            row.image(index)
            row.text(self._after_image, special=False)

    def _open(self, row: Row, system: str) -> None:
        if self.template.bos:
            row.marker(self.tokenizer.bos_id)
        if system and self.template.system_start:
            row.text(self.template.system_start, special=True)
            row.text(system, special=False)
            row.text(self.template.system_end, special=True)

    def _ask(self, row: Row, question: str) -> None:
        if PLACEHOLDER in question:
            raise UserError(f"sample {row.key!r}: a question holds {PLACEHOLDER}; shared images stand in front of it")
        row.text(question.strip(), special=False)
        row.text(self.template.user_end, special=True)

    def _answer(self, row: Row, answer: str, last: bool) -> None:
        row.text(self.template.answer_start, special=True)
        if answer:  # an empty answer leaves the turn open and teaches nothing, as the reference does
            row.text(answer, special=False, supervised=True)
            row.marker(self.end_id, supervised=True)
            if not last:
                row.text(self.template.answer_gap, special=True)


def _alternating(conversation: Sequence[Turn], num_images: int, key: str) -> list[tuple[str, str]]:
    """Turns as (who, stripped text), checked; a leading answer is dropped, a lone image gets its placeholder."""
    turns = [(turn.get("from", ""), turn.get("value", "").strip()) for turn in conversation]
    system = [turns.pop(0)] if turns and turns[0][0] == "system" else []
    if turns and turns[0][0] == "gpt":
        turns = turns[1:]
    if not turns:
        raise UserError(f"sample {key!r}: the conversation has no turn of the user")
    for place, (who, _) in enumerate(turns):
        expected = ("human", "gpt")[place % 2]
        if who != expected:
            raise UserError(f"sample {key!r}: turn {place} is from {who!r}, not {expected!r}; turns must alternate")
    if num_images == 1 and not any(PLACEHOLDER in text for who, text in turns if who == "human"):
        turns[0] = ("human", f"{PLACEHOLDER}\n{turns[0][1]}")
    return system + turns
