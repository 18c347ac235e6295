"""MMMU: multiple choice and open questions of thirty subjects in six disciplines."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from mmframe.errors import UserError, suggest
from mmframe.metrics.base import Row, texts
from mmframe.metrics.choice import OptionAccuracy
from mmframe.registry import register

DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        *("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine"),
        *("Pharmacy", "Public_Health"),
    ),
    "Humanities and Social Science": ("History", "Literature", "Psychology", "Sociology"),
    "Tech and Engineering": (
        *("Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics"),
        *("Energy_and_Power", "Materials", "Mechanical_Engineering"),
    ),
}
DISCIPLINE = {subject: discipline for discipline, subjects in DISCIPLINES.items() for subject in subjects}

# Words after which a line of an open answer says its result; in the last line also what follows "="
_LEADS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


@register("metric")
class MMMUAccuracy(OptionAccuracy):
    """MMMU's accuracy over all questions, by subject and by discipline (Yue et al. 2024).

    Choices are read as in OptionAccuracy. Open answers follow the official eval_utils.py: an answer is right if an
    accepted text is part of what it says, or an accepted number (rounded to two decimals) is one of its numbers; see
    `open_candidates`. The official code picks an option at random where it reads none; here that is wrong and counted
    in `unmatched`, as is an empty open answer.

    References have `options` (empty: an open question), `answer` (a letter; for an open question a text or a list, also
    one written as a Python list) and `category`, the subject as in the official ids: ``Art_Theory``.
    """

    name = "mmmu_accuracy"
    needs = ("answer", "options", "category")
    samples = [
        ("(B) a cube", {"answer": "B", "options": ["a ball", "a cube"], "category": "Math"}),
        ("So the total is $1,250.", {"answer": ["1250", "1,250 dollars"], "options": [], "category": "Finance"}),
        ("hm", {"answer": "A", "options": ["Bach", "Mozart"], "category": "Music"}),
        ("", {"answer": "mitosis", "options": [], "category": "Biology"}),
    ]

    def score(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        subject = str(reference["category"])
        if subject not in DISCIPLINE:
            raise UserError(f"metric {self.name}: no subject {subject!r}; {suggest(subject, DISCIPLINE)}")
        row = super().score(prediction, reference) if reference["options"] else self._open(prediction, reference)
        return row | {"category": [subject, DISCIPLINE[subject]]}

    def _open(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        accepted = [form for text in self._answers(reference["answer"]) for form in _forms(text)]
        right = any(
            any(isinstance(answer, str) and answer in said for answer in accepted)
            if isinstance(said, str)
            else said in accepted
            for said in open_candidates(prediction)
        )
        return {"score": float(right), "unmatched": not prediction.strip()}

    def _answers(self, given: Any) -> list[str]:
        if isinstance(given, str) and given.startswith("[") and given.endswith("]"):
            try:
                given = ast.literal_eval(given)
            except (ValueError, SyntaxError):
                pass  # a text with brackets around
        answers = texts(given, self.name)
        if not all(answer.strip() for answer in answers):
            raise UserError(f"metric {self.name}: an empty accepted answer in {answers} would be part of any answer")
        return answers


def open_candidates(answer: str) -> list[str | float]:
    """What an open answer may be saying: texts in lower case, and numbers rounded to two decimals.

    Of each line the shortest rest behind a word like "is" or "so"; of the last line also that behind "="; of an answer
    without any, all of it. Then every number in these.
    """
    plain = answer.strip().strip(".").lower()
    lines = plain.split("\n")
    results = [_result(line, (*_LEADS, "=") if line_number == len(lines) else _LEADS)
               for line_number, line in enumerate(lines, 1)]  # fmt: skip
    said = [result for result in results if result and result not in list(":,.!?;'")] or [plain]
    numbers = [number for text in said for pattern in _NUMBERS for number in pattern.findall(text)]
    return [form for text in (*said, *numbers) for form in _forms(text)]


def _result(line: str, leads: tuple[str, ...]) -> str:
    rests = [line.split(lead)[-1].strip() for lead in leads if lead in line]
    found = ""
    for rest in rests:  # an empty rest is replaced by the next, as in the official code
        if not found or len(rest) < len(found):
            found = rest
    return found


def _forms(text: str) -> list[str | float]:
    """A number, or a text in lower case; a single character only beside a space, so that it is not part of any word."""
    plain = text.strip()
    try:
        return [round(float(plain.replace(",", "")), 2)]
    except ValueError:
        lower = plain.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]
