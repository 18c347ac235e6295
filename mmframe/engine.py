"""The inference engine: batches of prompts, streams, conversations, on the modules that train.

B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mmframe.batch import Sample
from mmframe.cache import KVCache
from mmframe.contracts import Backbone, check_fp16
from mmframe.dialogue import Chat
from mmframe.errors import UserError
from mmframe.generation import StaticStep, Step, run_prompts
from mmframe.model import MultimodalLM
from mmframe.processing import ChatProcessor
from mmframe.sampling import RowSampler, SamplingParams, sample
from mmframe.shared_prefix import run_beginnings
from mmframe.streaming import TextStream

SMALLEST_STATIC = 256
"""Capacity of the smallest static cache, tokens; larger ones are powers of two, so that few shapes are compiled."""


@dataclass(frozen=True)
class Completion:
    """An answer.

    ids            new token ids, without the stop id; with a stop text, those it was made of are among them
    text           what they say, cut before a stop text
    finish_reason  "stop" (a stop id or a stop text) or "length" (max_new_tokens, or the end of the context)
    """

    ids: list[int]
    text: str
    finish_reason: str


class Answer:
    """One answer in the making.

    Args:
        prompt: What is answered.
        params: How.
        room: Longest answer, tokens.
        processor: Knows the ids that end an answer.
        vocab_size: V.
        device: Of the logits.
    """

    def __init__(
        self,
        prompt: Sample,
        params: SamplingParams,
        room: int,
        processor: ChatProcessor,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        specials = processor.tokenizer.specials
        # markers are left out of the text, so a stop text that is one can only be met as an id
        self.stop_ids = {*processor.stop_ids, *(specials[text] for text in params.stop if text in specials)}
        self.sampler = RowSampler(params, prompt.ids[prompt.blocks < 0], vocab_size, device)
        self.stream = TextStream(processor.tokenizer, params.stop)
        self.room = room
        self.ids: list[int] = []
        self.finish_reason = ""

    def take(self, token: int) -> str:
        """One more token; returns the text that it makes certain. One that has finished takes nothing."""
        if self.finish_reason:
            return ""
        if token in self.stop_ids:
            self.finish_reason = "stop"
            return self.stream.end()
        self.ids.append(token)
        piece = self.stream.add(token)
        if len(self.ids) == self.room and not self.stream.stopped:
            self.finish_reason = "length"
            piece += self.stream.end()
        if self.stream.stopped:
            self.finish_reason = "stop"
        return piece

    def completion(self) -> Completion:
        return Completion(self.ids, self.stream.text, self.finish_reason)


class Engine:
    """Answers prompts. What it gives for a row never depends on the other rows of the batch.

    Args:
        net: The model, fp32 or bf16; is put in eval mode.
        processor: Its processor; `encode_prompt` makes the prompts.
        prefill_chunk: Most tokens of a prompt in one pass (see run_prompts); None: all at once.
        compile: Compile the decoding step with torch.compile. Shapes are then static: attention runs over the
            cache's whole capacity, and rows that have finished stay in the batch.
        cuda_graph: Capture the decoding step in a CUDA graph, static as well.
        max_context: Most tokens of prompt and answer; None: what the backbone was made for (see context_limit).

    Raises:
        UserError: fp16, a chunk or context below 1, or a graph without a CUDA device.
    """

    def __init__(
        self,
        net: MultimodalLM,
        processor: ChatProcessor,
        *,
        prefill_chunk: int | None = None,
        compile: bool = False,
        cuda_graph: bool = False,
        max_context: int | None = None,
    ) -> None:
        parameter = next(net.parameters())
        check_fp16(parameter.dtype)
        for name, value in (("prefill_chunk", prefill_chunk), ("max_context", max_context)):
            if value is not None and value < 1:
                raise UserError(f"engine: {name}={value} must be at least 1")
        self.net, self.processor = net.eval(), processor
        self.device = parameter.device
        self.prefill_chunk, self.compile, self.cuda_graph = prefill_chunk, compile, cuda_graph
        self.max_context = context_limit(net.backbone) if max_context is None else max_context
        self._kept: Step | None = None
        if cuda_graph and self.device.type != "cuda":
            self.new_step(1, 1)  # raises now rather than at the first prompt

    @property
    def static(self) -> bool:
        return self.compile or self.cuda_graph

    def generate(
        self, prompts: Sequence[Sample], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Answers of all prompts, in their order, made as one batch; finished rows leave it.

        Args:
            prompts: From `processor.encode_prompt`; texts of any lengths, with and without images.
            params: Of all, or one for each; default: greedy.

        Raises:
            UserError: a prompt that is empty or longer than the context, or weights that give no numbers.
        """
        if not prompts:
            return []
        answers = self.new_answers(prompts, params)
        capacity = max(len(prompt) for prompt in prompts) + max(answer.room for answer in answers)
        with self._borrowed_step(len(prompts), capacity) as step:
            for _ in self.decode(step, self.prefill(prompts, step.cache), answers):
                pass
        return [answer.completion() for answer in answers]

    def stream(self, prompt: Sample, params: SamplingParams | None = None) -> Iterator[str]:
        """The answer of one prompt in pieces, as soon as each is certain; joined they are `Completion.text`.

        A piece never holds half a character, nor a part of what may become a stop text.
        """
        answers = self.new_answers([prompt], params)
        return self._stream(prompt, answers)

    def _stream(self, prompt: Sample, answers: list[Answer]) -> Iterator[str]:
        with self._borrowed_step(1, len(prompt) + answers[0].room) as step:
            for (piece,) in self.decode(step, self.prefill([prompt], step.cache), answers):
                if piece:
                    yield piece

    def chat(self, system: str | None = None, max_tiles: int = 12) -> Chat:
        """A conversation that keeps its history and its cache.

        Args:
            system: System message; None takes the processor's, "" writes none.
            max_tiles: Most tiles of the pictures of one turn, shared evenly among them; thumbnails not counted.
        """
        return Chat(self, system, max_tiles)

    def new_answers(
        self, prompts: Sequence[Sample], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[Answer]:
        """Checks prompts and makes their answers, empty so far."""
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(prompts)
        if len(params) != len(prompts):
            raise UserError(f"engine: {len(params)} sampling params for {len(prompts)} prompts; give one, or as many")
        answers = []
        for number, (prompt, p) in enumerate(zip(prompts, params, strict=True)):
            where = f"prompt {number}" + (f" ({prompt.key!r})" if prompt.key else "")
            if not len(prompt):
                raise UserError(f"{where} is empty; write a question or give an image")
            left = p.max_new_tokens if self.max_context is None else self.max_context - len(prompt)
            if left < 1:
                slots = int((prompt.blocks >= 0).sum())
                raise UserError(
                    f"{where}: {len(prompt)} tokens, {slots} of them of images, leave no room for an answer in a "
                    f"context of {self.max_context}; shorten the text or take fewer tiles (max_tiles)"
                )
            room = min(p.max_new_tokens, left)
            answers.append(Answer(prompt, p, room, self.processor, self.net.backbone.vocab_size, self.device))
        return answers

    def prefill(self, prompts: Sequence[Sample], cache: KVCache) -> Tensor:
        """Runs prompts into a cache; logits [B, V] after each. What several begin with runs once (shared_prefix).

        Raises:
            UserError: they are NaN or infinite.
        """
        left = run_beginnings(self.net, prompts, cache, self.prefill_chunk)
        logits_BV = run_prompts(self.net, left, cache, self.prefill_chunk)
        bad = (~logits_BV.isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise UserError(
                f"prompt {bad[0]} ({prompts[bad[0]].key!r}): the model's logits are NaN or infinite; its weights are "
                "damaged (`mmframe import` checks them) or the picture's pixels are"
            )
        return logits_BV

    @torch.no_grad()
    def decode(self, step: Step, logits_BV: Tensor, answers: Sequence[Answer]) -> Iterator[list[str]]:
        """Decodes until every answer has finished; yields the new pieces of text of the running ones."""
        running = list(answers)
        while True:
            tokens = sample(logits_BV, [answer.sampler for answer in running])
            yield [answer.take(token) for answer, token in zip(running, tokens, strict=True)]
            still = [i for i, answer in enumerate(running) if not answer.finish_reason]
            if not still:
                return
            if len(still) < len(running) and not self.static:
                step = step.select(still)
                running, tokens = [running[i] for i in still], [tokens[i] for i in still]
            logits_BV = step(tokens)

    def new_step(self, rows: int, capacity: int) -> Step:
        """A decoding step over a new, empty cache of at least `capacity` tokens a row."""
        if not self.static:
            return Step(self.net, self.net.backbone.new_cache(rows, capacity))
        capacity = max(SMALLEST_STATIC, 1 << (capacity - 1).bit_length())
        cache = self.net.backbone.new_cache(rows, capacity)
        return StaticStep(self.net, cache, self.compile, self.cuda_graph)

    @contextmanager
    def _borrowed_step(self, rows: int, capacity: int) -> Iterator[Step]:
        """As new_step; a static one, which is compiled or captured, is kept for the next batch of its size."""
        kept, self._kept = self._kept, None  # another answer at the same time gets one of its own
        if kept is not None and kept.cache.num_rows == rows and kept.cache.capacity >= capacity:
            kept.cache.truncate([0] * rows)
        else:
            kept = None  # before the new one takes memory
            kept = self.new_step(rows, capacity)
        try:
            yield kept
        finally:
            self._kept = kept if self.static else None


def context_limit(backbone: Backbone) -> int | None:
    """Most tokens of a context: what the rotary embedding was made for.

    Linear and dynamic scaling extend `max_positions` by their factor; the others (llama3, yarn) count it in already.
    None where the backbone says nothing of it.
    """
    rope = getattr(backbone, "rotary", None)
    if rope is None:
        return None
    return int(rope.max_positions * (rope.factor if rope.scaling in ("linear", "dynamic") else 1))
