"""The two classes that lmms-eval runs: one is asked with chat messages, the other with a text and its pictures.

lmms-eval asks with messages unless --force_simple is given; likelihoods it asks of the simple class alone.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.utils import simple_parse_args_string  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from mmframe.batch import Sample
from mmframe.bridges.lmms_eval.decoding import sampling_params
from mmframe.bridges.lmms_eval.messages import read_messages, user_message
from mmframe.bridges.lmms_eval.options import NAME, Options
from mmframe.errors import UserError
from mmframe.evaluate.likelihood import option_likelihoods

Messages = Sequence[Mapping[str, Any]]
REPEAT = 1_000_003
"""Between the seeds of a question's repeats; a document's number is added. torch keeps 32 bits of a seed on the CPU."""


@dataclass(frozen=True)
class Asked:
    """A request. Its messages, which decode pictures, are made when it is its turn."""

    task: str
    doc_id: int
    messages: Callable[[], Messages]
    kwargs: Mapping[str, Any]

    @property
    def where(self) -> str:
        return f"task {self.task}, document {self.doc_id}"


class MMFrame(lmms):
    """A model of mmframe in lmms-eval 0.7, asked with chat messages.

    Args:
        arguments: Those of `Options`.

    Raises:
        UserError: a wrong argument, or what loading finds.
    """

    is_simple = False

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.options = Options.read(arguments)
        system = self.options.system_prompt
        self.system = system and self._resolve_system_prompt(system)
        self.served = self.options.open()
        self.device = self.served.engine.device
        self.batch_size = self.options.batch_size
        if not _rank():
            print(f"{self.served.describe()}, at most {self.served.max_tiles} tiles a question", file=sys.stderr)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> MMFrame:
        """As lmms-eval's own, but what --model_args says goes before --batch_size and --device."""
        rest = {key: value for key, value in (additional_config or {}).items() if value is not None}
        return cls(**(rest | simple_parse_args_string(arg_string)))

    @property
    def chat_template(self) -> str:
        raise UserError(f"{NAME}: it always writes its own chat template; leave out --apply_chat_template")

    def clean(self) -> None:
        """Frees the model: lmms-eval has all answers, and may load a judge."""
        del self.served
        super().clean()

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """One answer a request: what mmframe.engine says to its prompt.

        Raises:
            UserError: a request that cannot be asked, or generation_kwargs that cannot be honoured; names the task.
        """
        return self._answer([self._asked(request) for request in requests])

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """The answers of all rounds of each request. All requests are asked one round, then the next."""
        said: list[list[str]] = [[] for _ in requests]
        known: list[Any] = [None] * len(requests)
        live = {place: self._asked(request) for place, request in enumerate(requests)}
        while live:
            places = list(live)
            for place, answer in zip(places, self._answer(list(live.values())), strict=True):
                said[place].append(answer.text)
                asked, doc_to_messages = live.pop(place), requests[place].args[1]
                past = {"round_idx": len(said[place]), "previous_output": list(said[place])}
                following = doc_to_messages(self._document(requests[place]), **past, previous_round_info=known[place])
                if isinstance(following, tuple) and len(following) == 4 and not following[1]:
                    messages, _, _, known[place] = following
                    live[place] = Asked(asked.task, asked.doc_id, lambda messages=messages: messages, asked.kwargs)
        return said

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """(loss, greedy) of each request: nats, lower is likelier; and whether greedy decoding would say it.

        Space in front of a continuation is left out: lmms-eval puts it between question and answer, and behind a chat
        template an answer begins without. Options of one question share its prompt.
        """
        scored = []
        for group in self._by_prompt(requests):
            prompts = [self._encode(asked) for asked, _ in group]
            with _memory_error(self.batch_size):
                made = option_likelihoods(self.served.engine, prompts, [texts for _, texts in group])
            scored += [one for options in made for one in options]
        mean = self.options.loss == "mean"
        losses = [-one.total / one.tokens if mean else -one.total for one in scored]
        # the evaluator of 0.7.3 turns a bare pair into a string, and leaves this one alone
        return [GenerationResult(text=(loss, one.greedy)) for loss, one in zip(losses, scored, strict=True)]

    def _asked(self, request: Any) -> Asked:
        _, doc_to_messages, kwargs, doc_id, task, _ = request.args
        return Asked(task, doc_id, lambda: doc_to_messages(self._document(request)), kwargs)

    def _document(self, request: Any) -> Any:
        doc_id, task, split = request.args[-3:]
        return self.task_dict[task][split][doc_id]

    def _encode(self, asked: Asked) -> Sample:
        turns, images = read_messages(asked.messages(), self.system, asked.where)
        model, budget = self.served.model, self.served.max_tiles
        return model.processor.encode_prompt(turns, images, model.net.patch_embedder, budget, asked.where)

    def _answer(self, asked: Sequence[Asked]) -> list[Any]:
        options = self.options
        repeats: Counter[str] = Counter()
        params = []
        for one in asked:  # all before the first is answered: a kwarg that cannot be honoured shows at once
            draw = one.doc_id + REPEAT * repeats[one.where]
            repeats[one.where] += 1
            limits = options.max_new_tokens, options.stop_at_blank_line
            params.append(sampling_params(one.kwargs, f"task {one.task}", *limits, draw))
        answers = []
        for places in self._progress(range(0, len(asked), self.batch_size)):
            batch = slice(places, places + self.batch_size)
            prompts = [self._encode(one) for one in asked[batch]]
            with _memory_error(self.batch_size):
                made = self.served.engine.generate(prompts, params[batch])
            for prompt, completion in zip(prompts, made, strict=True):
                counts = TokenCounts(input_tokens=len(prompt), output_tokens=len(completion.ids))
                answers.append(GenerationResult(completion.text, counts))
        return answers

    def _by_prompt(self, requests: Sequence[Any]) -> Iterator[list[tuple[Asked, list[str]]]]:
        """Batches of questions with their continuations; a question is not split."""

        batch: list[tuple[Asked, list[str]]] = []
        for _, group in groupby(self._progress(requests), lambda request: (request.args[0], *request.args[3:])):
            options = list(group)
            texts = [self._continuation(option).lstrip() for option in options]
            if batch and sum(len(known) for _, known in batch) + len(texts) > self.batch_size:
                yield batch
                batch = []
            text, _, doc_to_visual, doc_id, task, _ = options[0].args
            asked = Asked(task, doc_id, self._simple_messages(options[0], text, doc_to_visual), {})
            batch.append((asked, texts))
        if batch:
            yield batch

    def _continuation(self, request: Any) -> str:
        given = request.args[1]
        return str(given(self._document(request)) if callable(given) else given)

    def _simple_messages(self, request: Any, text: str, doc_to_visual: Callable) -> Callable[[], Messages]:
        return lambda: [user_message(doc_to_visual(self._document(request)) or (), text)]

    def _progress(self, items: Any) -> Any:
        return tqdm(items, disable=self.rank != 0, desc="mmframe")


class MMFrameSimple(MMFrame):
    """The same, asked with a text and its pictures, which stand in front unless the text says where."""

    is_simple = True

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        raise UserError(f"{NAME}: tasks of several rounds are asked with messages; leave out --force_simple")

    def _asked(self, request: Any) -> Asked:
        text, kwargs, doc_to_visual, doc_id, task, _ = request.args
        return Asked(task, doc_id, self._simple_messages(request, text, doc_to_visual), kwargs)


@contextmanager
def _memory_error(batch_size: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"{NAME}: out of memory with batch_size={batch_size}; use a smaller one") from error


def _rank() -> int:
    return int(os.environ.get("RANK", 0))
