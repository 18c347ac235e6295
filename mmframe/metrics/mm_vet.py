"""MM-Vet: open answers that need several capabilities at once, graded from 0 to 1."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmframe.errors import UserError
from mmframe.metrics.base import Row
from mmframe.metrics.judged import VERDICT, JudgedMetric, Unreadable
from mmframe.registry import register

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
_GRADE = re.compile(
    r"(?:(?:the\s+)?(?:correctness|score|grade)(?:\s+score)?(?:\s+is)?\s*[:=]?\s*)?([01](?:\.\d+)?)\.?", re.I
)


@register("metric")
class MMVetScore(JudgedMetric):
    """MM-Vet's score in percent, of all samples and by capability (Yu et al. 2024).

    The benchmark is defined with GPT-4 as a judge that grades every answer from 0 to 1; with verdicts the score is
    their mean, as its evaluator's. Without a judge only the reference's own syntax can be checked: `<OR>` stands
    between alternatives, `<AND>` between what all has to be said; a row's score is the best alternative's share of
    parts that stand in the answer word for word (capitals and spaces do not count), and `unmatched` counts answers in
    which no alternative stands whole, since they may say it in other words. That does not compare with judged scores.

    References have `answer` and `category`, a list of capabilities: rec, ocr, know, gen, spat, math.
    """

    name = "mm_vet_score"
    headline = "score"
    needs = ("answer", "category")
    samples = [
        ("x is -1 or -5.", {"answer": "-1<AND>-5", "category": ["ocr", "math"]}),
        ("It is a Dog", {"answer": "a dog<OR>a puppy", "category": ["rec"]}),
        ("a hound", {"answer": "a dog<OR>a puppy", "category": ["rec"]}),
        ("a hound", {"answer": "a dog<OR>a puppy", "category": ["rec"], VERDICT: 0.9}),
    ]
    asks = "all"

    def score(self, prediction: str, reference: Mapping[str, Any]) -> Row:
        if reference.get(VERDICT) is not None:
            return {"score": float(reference[VERDICT]), "unmatched": False, "by": "judge"}
        found = max(_share(prediction, part) for part in self._alternatives(str(reference["answer"])))
        return {"score": found, "unmatched": found < 1, "by": "rules"}

    def read_judge(self, reply: str, reference: Mapping[str, Any]) -> float:
        found = _GRADE.fullmatch(reply.strip(" \n\t|*`"))
        if not found or float(found[1]) > 1:
            raise Unreadable("not a number from 0 to 1")
        return float(found[1])

    def _alternatives(self, answer: str) -> list[list[str]]:
        found = [[part.strip() for part in one.split("<AND>")] for one in answer.split("<OR>")]
        if not all(part for one in found for part in one):
            raise UserError(f"metric {self.name}: the reference answer {answer!r} has an empty part")
        return found


def _share(answer: str, parts: list[str]) -> float:
    return sum(_stands(part, answer) for part in parts) / len(parts)


def _stands(part: str, answer: str) -> bool:
    """Whether a text stands in an answer as whole words; a number not as a part of another one."""
    plain = " ".join(part.lower().rstrip(".").split()) or part
    before = r"(?<![\w.,−-])" if plain[0].isdigit() else r"(?<!\w)"
    return bool(re.search(before + re.escape(plain) + r"(?!\w|[.,]\d)", " ".join(answer.lower().split())))
