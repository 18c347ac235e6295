"""Greedy answers to questions about held-out pictures, compared exactly; with a black picture, too."""

from __future__ import annotations

from collections.abc import Sequence

from components.evaluators.common import percent
from components.evaluators.held_out import files_of, spread, tiles_of
from mmframe.contracts import Evaluator
from mmframe.data.pictures import open_picture
from mmframe.errors import UserError
from mmframe.evaluation import Asked, answer_questions
from mmframe.loading import LoadedModel
from mmframe.registry import register

YES_NO = ("yes", "no")
KINDS = ("all", "open", "yes_no")


@register("evaluator")
class VisualQuestions(Evaluator):
    """Exact match of free greedy answers about held-out pictures, open questions and those of yes or no apart.

    Capitals and space around an answer do not count. The same questions about a black picture of the same size show
    what needs no sight. Gives percentages `all`, `open`, `yes_no`, each with its standard error `..._se` (over
    questions) and its number `..._n`; the first three also as `blind_...`. Kinds that do not occur are left out.

    Args:
        questions: Files of records with "questions"; their kind is known by their ending, `demo:` and `offline:` are
            known.
        pictures: At most so many records, evenly spread over the files.
        max_tiles: Most tiles of a picture; null: as many as the model was trained with.
        max_new_tokens: Longest answer, tokens.
        blind: Ask about a black picture as well.
    """

    toy_args = {"questions": "held_out.jsonl"}

    def __init__(
        self,
        questions: str = "demo:easy_vqa/val.jsonl",
        pictures: int = 50,
        max_tiles: int | None = 1,
        max_new_tokens: int = 8,
        blind: bool = True,
    ) -> None:
        if min(pictures, max_tiles or 1, max_new_tokens) < 1:
            raise UserError(
                f"VisualQuestions: pictures={pictures}, max_tiles={max_tiles} and max_new_tokens={max_new_tokens} "
                "must be at least 1"
            )
        self.questions, self.pictures, self.max_tiles = questions, pictures, max_tiles
        self.max_new_tokens, self.blind = max_new_tokens, blind

    def metrics(self) -> list[str]:
        blind = [f"blind_{kind}" for kind in KINDS] if self.blind else []
        return [*(kind + what for kind in KINDS for what in ("", "_se", "_n")), *blind]

    def files(self) -> list[str]:
        return files_of(self.questions)

    def evaluate(self, model: LoadedModel) -> dict[str, float]:
        pictures, asked, answers = [], [], []
        for record in spread(self.questions, self.pictures, "VisualQuestions"):
            if not record.questions or len(record.images) != 1:
                raise UserError(f"VisualQuestions: record {record.key!r} is not one picture with questions")
            for question, answer in record.questions:
                asked.append(Asked(len(pictures), question))
                answers.append(answer)
            pictures.append(open_picture(record.images[0]))
        figures = scores("", self._right(model, pictures, asked, answers), answers)
        if self.blind:
            blind = scores("blind_", self._right(model, pictures, asked, answers, blind=True), answers)
            figures |= {name: value for name, value in blind.items() if not name.endswith(("_se", "_n"))}
        return figures

    def _right(
        self, model: LoadedModel, pictures: list, asked: list[Asked], answers: Sequence[str], blind: bool = False
    ) -> list[bool]:
        tiles = tiles_of(model, self.max_tiles, "VisualQuestions")
        said = answer_questions(model.net, model.processor, pictures, asked, self.max_new_tokens, tiles, blind=blind)
        return [one.casefold() == other.strip().casefold() for one, other in zip(said, answers, strict=True)]


def scores(prefix: str, right: Sequence[bool], answers: Sequence[str]) -> dict[str, float]:
    """Percent of right answers: of all, of the open questions, of those answered by yes or no."""
    is_open = [answer.strip().casefold() not in YES_NO for answer in answers]
    chosen_of = ([True] * len(right), is_open, [not each for each in is_open])
    figures: dict[str, float] = {}
    for kind, chosen in zip(KINDS, chosen_of, strict=True):
        figures |= percent(prefix + kind, [r for r, c in zip(right, chosen, strict=True) if c])
    return figures
