"""`mmframe generate`: answers the rows of a JSONL file, batched; a killed run goes on where it was."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmframe.cli import inference_ranks
from mmframe.cli.flags import parse_flags, whole
from mmframe.cli.progress_line import ProgressLine, bar, clock, short
from mmframe.cli.serving import (
    Served,
    add_model_flags,
    add_sampling_flags,
    model_device,
    open_model,
    sampling_params,
)
from mmframe.errors import UserError

if TYPE_CHECKING:  # torch is loaded only to run something
    from mmframe.batch import Sample
    from mmframe.cli.answer_file import AnswerFile
    from mmframe.cli.question_rows import Question
    from mmframe.engine import Completion
    from mmframe.sampling import SamplingParams

TOLD = 20  # bad rows reported one by one

EXAMPLE = """A row of the data is one of
  {"id": 1, "image": "a.jpg", "prompt": "What is this?"}
  {"id": 2, "image": ["a.jpg", "b.jpg"], "conversations": [{"from": "human", "value": "<image> and <image>?"}]}
and gives {"id", "prompt", "answer", "finish_reason", "tokens"}, or {"id", "error"}, in the same order.
The same command continues a run that was killed. `torchrun --nproc-per-node N -m mmframe generate ...` spreads the
model over N GPUs."""


def main(words: list[str]) -> int:
    """Runs `mmframe generate ...`."""
    args = parse_flags("generate", words, _describe)
    if args is None:
        return 0
    from mmframe.cli.answer_file import AnswerFile
    from mmframe.cli.question_rows import read_questions

    if args.out.exists() and args.data.exists() and args.out.samefile(args.data):
        raise UserError(f"generate: --out {args.out} is the data itself")
    params = sampling_params(args)
    questions = read_questions(args.data, args.system)
    if inference_ranks.count() > 1:
        inference_ranks.join(model_device(args))
        if not inference_ranks.is_first():
            inference_ranks.wait()  # until the first has made the file what it will go on from
    with AnswerFile(args.out, args.force, writes=inference_ranks.is_first()) as out:
        if inference_ranks.is_first():
            inference_ranks.wait()
        out.check(questions)
        out.claim({"model": args.model, "dtype": args.dtype, "system": args.system, **asdict(params)})
        if out.torn:
            _say(f"generate: cut off a last line that was not complete in {args.out}")
        if out.done:
            _say(f"generate: {out.done} of {len(questions)} rows are there; goes on from there")
        if out.done < len(questions):
            from mmframe.weights import weights_digest

            served = open_model(args, spread=True)
            weights = served.whole_weights or weights_digest(served.model.net)
            out.claim({"weights": weights, "max_tiles": served.max_tiles})
            Run(questions, out, served, params, args.batch_size).run()
        if out.bad == len(questions):
            raise UserError(f"generate: all {out.bad} rows are bad; {args.out} says why")
    return 0


def _describe(parser: argparse.ArgumentParser) -> None:
    parser.description = "Answers the rows of a JSONL file, batched, in their order."
    parser.epilog = EXAMPLE
    parser.add_argument("--data", required=True, type=Path, metavar="IN.jsonl", help="the rows")
    parser.add_argument("--out", required=True, type=Path, metavar="OUT.jsonl", help="the answers")
    parser.add_argument(
        "--batch-size", type=whole(1), default=8, metavar="N", help="rows at once (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="start over; what is there is kept as OUT.jsonl.old-N")
    add_model_flags(parser)
    add_sampling_flags(parser)


class Run:
    """Answers all rows that have no answer yet.

    A continued run makes the same batches as an uninterrupted one, and the same answers (see mmframe.batched).
    """

    def __init__(
        self,
        questions: Sequence[Question],
        out: AnswerFile,
        served: Served,
        params: SamplingParams,
        batch_size: int,
    ) -> None:
        self.questions, self.out, self.served, self.params = questions, out, served, params
        self.batch_size = batch_size
        self.progress = ProgressLine(None if inference_ranks.is_first() else open(os.devnull, "w"))
        self.begun, self.before, self.tokens = time.monotonic(), out.done, 0
        self.told = self.held = 0  # bad rows reported; rows that wait for one before them

    def run(self) -> None:
        """Answers, writes, and says how it went."""
        from mmframe.batched import answer_prompts, batches, encoded_ahead

        chosen = batches(
            len(self.questions),
            self.batch_size,
            self._length,
            wanted=lambda place: place >= self.before,
            kin=lambda place: self.questions[place].images or place,
        )
        rows: dict[int, dict[str, Any]] = {}
        try:
            for prompts in encoded_ahead(chosen, self._encode):
                made = answer_prompts(self.served.engine, prompts, self._params)
                rows |= {place: self._row(self.questions[place], answer) for place, answer in made.items()}
                rows = self._write(rows)
                if self.progress.due():
                    self.progress.update(self._line())
        except KeyboardInterrupt:
            self.progress.tell(f"generate: stopped with {self.out.done} rows written; the same command goes on")
            raise
        if self.progress.terminal:
            self.progress.update(self._line(), last=True)
        passed, made = time.monotonic() - self.begun, self.out.done - self.before
        self.progress.tell(
            f"generate: {self.out.done - self.out.bad} rows answered, {self.out.bad} bad; {made} rows and "
            f"{short(self.tokens)} tokens in {clock(passed)} ({self.tokens / passed:.1f} tok/s) -> {self.out.path}"
        )

    def _length(self, place: int) -> int:
        """Tokens of a row, nearly: from the headers of its pictures, which are decoded when it is their turn."""
        from mmframe.cli.picture_facts import tokens_of_picture

        question = self.questions[place]
        share = max(1, self.served.max_tiles // max(1, len(question.images)))
        pictures = sum(tokens_of_picture(path, self.served.model, share) for path in question.images)
        return pictures + sum(len(turn["value"]) for turn in question.turns) // 4

    def _encode(self, place: int) -> Sample:
        from mmframe.images import open_image

        question, model = self.questions[place], self.served.model
        if question.error:
            raise UserError(question.error)
        images = [open_image(path) for path in question.images]
        return model.processor.encode_prompt(
            question.turns, images, model.net.patch_embedder, self.served.max_tiles, str(question.id)
        )

    def _params(self, place: int) -> SamplingParams:
        """A seed of its own for each row, so that its answer does not depend on the rows beside it."""
        return replace(self.params, seed=self.params.seed + place)

    def _row(self, question: Question, answer: Completion | UserError) -> dict[str, Any]:
        if isinstance(answer, UserError):
            return {"id": question.id, "error": str(answer)}
        self.tokens += len(answer.ids)
        return {
            "id": question.id,
            "prompt": question.prompt,
            "answer": answer.text,
            "finish_reason": answer.finish_reason,
            "tokens": len(answer.ids),
        }

    def _write(self, rows: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """Appends the rows whose turn it is; returns those that wait for one before them."""
        ready = []
        while self.out.done + len(ready) in rows:
            ready.append(rows[self.out.done + len(ready)])
        for row in ready:
            if "error" in row:
                self._report(row)
        if ready:
            self.out.append(ready)
        waiting = {place: row for place, row in rows.items() if place >= self.out.done}
        self.held = len(waiting)
        return waiting

    def _report(self, row: dict[str, Any]) -> None:
        self.told += 1
        if self.told <= TOLD:
            self.progress.tell(f"generate: row {row['id']!r} is bad: {row['error']}")
        elif self.told == TOLD + 1:
            self.progress.tell(f"generate: further bad rows are counted, and told in {self.out.path}")

    def _line(self) -> str:
        done = self.out.done + self.held
        passed, made = max(time.monotonic() - self.begun, 1e-9), done - self.before
        parts = [bar(done, len(self.questions)), f"{short(self.tokens / passed)} tok/s"]
        if self.out.bad:
            parts.append(f"{self.out.bad} bad")
        if made:
            parts.append(f"{clock((len(self.questions) - done) * passed / made)} left")
        return "  ".join(parts)


def _say(text: str) -> None:
    if inference_ranks.is_first():
        print(text, file=sys.stderr, flush=True)
