"""MathVista: choices, integers, decimals and lists, found in free answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmframe.errors import UserError, suggest
from mmframe.metrics.base import Row
from mmframe.metrics.judged import NO_ANSWER, VERDICT, JudgedMetric, Unreadable
from mmframe.metrics.option_letters import named_options, option_letter
from mmframe.metrics.stated_numbers import one_list, one_number
from mmframe.registry import register

ANSWER_TYPES = ("text", "integer", "float", "list")
_LEAD = re.compile(r"^\W*(?:the\s+)?(?:extracted\s+)?answer(?:\s+is)?\s*:?\s*", re.I)


@register("metric")
class MathVistaAccuracy(JudgedMetric):
    """MathVista's accuracy (Lu et al. 2024), of all questions and by category.

    The official code (calculate_score.py) takes a bare number or choice as it is, lets GPT-4 extract the answer from
    everything else, and compares: choices by their text, integers after cutting decimals off, floats after rounding to
    `precision`, lists as texts. Here rules read it first (mmframe.metrics.option_letters, stated_numbers), a judge is
    asked about the answers that they cannot read, and the rules read its extraction. The official code takes the choice
    that is nearest to the extraction by edit distance; that is a guess and is not made: such answers are wrong and
    counted in `unmatched`. Numbers are compared as numbers: 0.5 is 0.50, [1,2] is [1, 2].

    References have `answer` (for choices the text of the right one), `question_type` (``multi_choice``, ``free_form``),
    `answer_type` (``text``, ``integer``, ``float``, ``list``), `choices` and `precision` (of floats; decimals). Its
    `category` may be a list: task and skills.
    """

    name = "mathvista_accuracy"
    headline = "accuracy"
    needs = ("answer", "question_type", "answer_type", "choices", "precision")
    samples = [
        (said, {"answer": right, "question_type": kind, "answer_type": of, "choices": choices, "precision": digits})
        for said, right, kind, of, choices, digits in (
            ("(B) 8/11", "8/11", "multi_choice", "text", ["3/11", "8/11"], None),
            ("The number missing is 14.", "14", "free_form", "integer", None, None),
            ("$1.449", "1.45", "free_form", "float", None, 2.0),
            ("either 2 or 3", "[2, 3]", "free_form", "list", None, None),
        )
    ]
    asks = "unmatched"

    def score(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        right = self._right(reference)
        read, by = self._read(prediction, reference), "rules"
        if read is None and reference.get(VERDICT) is not None:
            read, by = self._read(str(reference[VERDICT]), reference), "judge"
        return {"score": float(read is not None and read == right), "chosen": read, "unmatched": read is None, "by": by}

    def read_judge(self, reply: str, reference: Mapping[str, Any]) -> str | None:
        said = _LEAD.sub("", reply.strip()).strip(" \n\t*`\"'")
        if said.rstrip(".").upper() == NO_ANSWER:
            return None
        if self._read(said, reference) is None:
            raise Unreadable("no answer of the kind that the question asks for")
        return said

    def _read(self, text: str, reference: Mapping[str, Any]) -> Any:
        """The text of a choice, a number, or a list of numbers; None where the rules find none or several."""
        kind = self._kind(reference)
        if kind == "text":
            choices = named_options(reference["choices"])
            exact = [letter for letter, choice in choices.items() if choice.strip() == text.strip()]
            letter = exact[0] if exact else option_letter(text, choices)  # a choice may be "B", or "4" of "4" and "14"
            return None if letter is None else choices[letter]
        if kind == "list":
            return one_list(text)
        number = one_number(text)
        return None if number is None else self._even(number, kind, reference)

    def _right(self, reference: Mapping[str, Any]) -> Any:
        kind, answer = self._kind(reference), str(reference["answer"])
        if kind == "text":
            if answer not in named_options(reference["choices"]).values():
                raise UserError(
                    f"metric {self.name}: the answer {answer!r} is none of the choices {reference['choices']}"
                )
            return answer
        number = one_list(answer) if kind == "list" else one_number(answer)
        if number is None:
            raise UserError(f"metric {self.name}: the reference answer {answer!r} is no {kind}")
        return number if isinstance(number, list) else self._even(number, kind, reference)

    def _even(self, number: float, kind: str, reference: Mapping[str, Any]) -> float:
        if kind == "integer":
            return float(int(number))
        if reference["precision"] is None:
            raise UserError(f"metric {self.name}: a float question needs its precision, the number of decimals")
        return round(number, int(reference["precision"]))

    def _kind(self, reference: Mapping[str, Any]) -> str:
        if reference["question_type"] == "multi_choice":
            return "text"
        kind = reference["answer_type"]
        if kind not in ANSWER_TYPES[1:]:
            raise UserError(
                f"metric {self.name}: answer_type {kind!r} of a free question; {suggest(str(kind), ANSWER_TYPES[1:])}"
            )
        return kind
