"""Examples become rows: pictures are decoded in threads, prompts run in batches, in the mode of their task."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from mmframe.batch import Sample
from mmframe.batched import WINDOW, answer_prompts, batches, encoded_ahead
from mmframe.cli.picture_facts import tokens_of_picture
from mmframe.data.pictures import open_picture
from mmframe.engine import Completion, Engine
from mmframe.errors import UserError
from mmframe.evaluate.likelihood import option_likelihoods, text_likelihood
from mmframe.evaluate.ranks import Ranks
from mmframe.evaluate.scoring import Row
from mmframe.loading import LoadedModel
from mmframe.sampling import SamplingParams
from mmframe.tasks.task import Example, Task


class Asking:
    """Asks a model the examples of a task.

    Args:
        task: What is asked.
        places: Which examples.
        ids: Theirs.
        pictures: Names of theirs. Examples with the same ones are asked together, so that those run once.
        model: Who is asked.
        engine: Its engine.
        batch_size: Prompts at once in mode generate; the other modes run one example at a time.
        max_tiles: Image budget of an example.
    """

    def __init__(
        self,
        task: Task,
        places: Sequence[int],
        ids: Sequence[str],
        pictures: Sequence[tuple[str, ...]],
        model: LoadedModel,
        engine: Engine,
        batch_size: int,
        max_tiles: int,
    ) -> None:
        self.task, self.ids, self.model, self.engine = task, ids, model, engine
        self.batch_size, self.max_tiles = batch_size if task.mode == "generate" else 1, max_tiles
        self.params = SamplingParams(task.decoding.max_new_tokens, stop=task.decoding.stop)
        first: dict[Hashable, int] = {}
        self._kin: list[Hashable] = [names or number for number, names in enumerate(pictures)]
        self._order = sorted(range(len(ids)), key=lambda number: first.setdefault(self._kin[number], number))
        # by number in `places`; those of the windows at work, as an example may carry the bytes of its pictures
        self._example = lru_cache(3 * WINDOW * self.batch_size)(lambda number: task[places[number]])

    def rows(self, done: Collection[str], ranks: Ranks) -> Iterator[list[Row]]:
        """The rows of one batch after another, of those that have no answer yet. Batches are dealt to the ranks.

        Args:
            done: Ids of examples that have an answer; the same on all ranks.
            ranks: This process and the others.

        Raises:
            UserError: the GPU is out of memory.
        """
        order = self._order
        todo = batches(
            len(order),
            self.batch_size,
            length=lambda at: self._length(order[at]),
            wanted=lambda at: self.ids[order[at]] not in done,
            kin=lambda at: self._kin[order[at]],
        )
        mine = ([order[at] for at in batch] for turn, batch in enumerate(todo) if turn % ranks.count == ranks.rank)
        for prompts in encoded_ahead(mine, self._encode):
            answers = self._answer(prompts)
            rows = [self._row(self._example(number), answer) for number, answer in answers.items()]
            yield [row for row in rows if row["id"] not in done]

    def _length(self, number: int) -> int:
        """Tokens of a prompt, nearly: from the headers of its pictures."""
        example = self._example(number)
        share = max(1, self.max_tiles // max(1, len(example.images)))
        pictures = sum(tokens_of_picture(picture, self.model, share) for picture in example.images)
        return pictures + sum(len(turn["value"]) for turn in example.turns) // 4

    def _encode(self, number: int) -> Sample | str:
        """The prompt; of mode perplexity the text itself."""
        example = self._example(number)
        if self.task.mode == "perplexity":
            return example.prompt
        images = [open_picture(picture) for picture in example.images]
        embedder = self.model.net.patch_embedder
        return self.model.processor.encode_prompt(example.turns, images, embedder, self.max_tiles, example.id)

    def _answer(self, prompts: dict[int, Any]) -> dict[int, Any]:
        if self.task.mode == "generate":
            return answer_prompts(self.engine, prompts, lambda _: self.params)
        return {number: self._likelihood(number, prompt) for number, prompt in prompts.items()}

    def _likelihood(self, number: int, prompt: Sample | str | UserError) -> Any:
        example = self._example(number)
        try:
            if isinstance(prompt, Sample):
                return option_likelihoods(self.engine, [prompt], [example.options])[0]
            return prompt if isinstance(prompt, UserError) else text_likelihood(self.engine, prompt, example.id)
        except UserError as error:
            return error

    def _row(self, example: Example, answer: Any) -> Row:
        row: Row = {"id": example.id, "prompt": example.prompt, "images": [str(picture) for picture in example.images]}
        row |= {"options": list(example.options)} if example.options else {}
        reference = dict(example.reference)
        if isinstance(answer, UserError):
            row["error"] = str(answer)
        elif isinstance(answer, Completion):
            row |= {"answer": answer.text, "finish_reason": answer.finish_reason, "tokens": len(answer.ids)}
        elif self.task.mode == "likelihood":
            row |= {"answer": [[one.total, one.tokens] for one in answer], "tokens": sum(one.tokens for one in answer)}
        else:
            row |= {"answer": answer[0], "tokens": answer[1]}
            reference["tokens"] = answer[1]
        return row | {"reference": reference}
