"""P40: golden answers of the yes-or-no benchmarks: MME, POPE, HallusionBench."""

from __future__ import annotations

import pytest

from mmframe.errors import UserError
from mmframe.metrics.hallusion import HallusionBenchScore
from mmframe.metrics.mme import MMEScore
from mmframe.metrics.pope import POPEScore
from mmframe.metrics.yes_no import prefix, truth, word
from tests.metrics.scored import scored


@pytest.mark.parametrize(
    ("said", "by_word", "by_prefix"),
    [
        ("Yes", "yes", "yes"),
        ("no.", "no", "no"),
        (" Yes, it is", "yes", "yes"),
        ("**Yes**", "yes", None),
        ("The answer is yes.", "yes", None),
        ("Yes, there is no dog", None, "yes"),
        ("no/yes", None, "no"),
        ("not sure", None, "no"),
        ("I know", None, None),
        ("know", None, "no"),
        ("eyes", None, "yes"),
        ("y", None, None),
        ("", None, None),
        ("是", None, None),
    ],
)
def test_yes_or_no_is_read_and_never_guessed(said: str, by_word: str | None, by_prefix: str | None) -> None:
    assert (word(said), prefix(said)) == (by_word, by_prefix)


def test_references_are_yes_or_no_in_any_dress() -> None:
    assert [truth(one, "x") for one in ("Yes", "no.", 1, "0", True)] == ["yes", "no", "yes", "no", "yes"]
    with pytest.raises(UserError, match="'maybe' is neither yes nor no"):
        truth("maybe", "x")


def asked(category: str, image: int, right: str, said: str) -> tuple[str, dict]:
    return said, {"answer": right, "category": category, "image": image}


def test_mme_adds_accuracy_and_pairs_by_subtask() -> None:
    found = scored(
        MMEScore(),
        asked("count", 1, "Yes", "Yes"),
        asked("count", 1, "No", "No."),
        asked("count", 2, "Yes", "yes"),
        asked("count", 2, "No", "Yes"),
        asked("OCR", 1, "Yes", "No"),  # the same name of a picture in another subtask: another pair
        asked("OCR", 1, "No", "No"),
        asked("code_reasoning", 1, "Yes", "Yes"),
        asked("code_reasoning", 1, "No", "dunno"),
    )
    assert (found["count/accuracy"], found["count/accuracy_plus"], found["count/score"]) == (75, 50, 125)
    assert (found["OCR/score"], found["code_reasoning/score"]) == (50, 50)
    assert (found["perception"], found["cognition"], found["score"]) == (175, 50, 225)
    assert (found["n"], found["unmatched"], found["incomplete"]) == (8, 1, 0)


def test_mme_says_that_a_pair_is_not_complete_and_that_a_subtask_is_unknown() -> None:
    found = scored(MMEScore("word"), asked("scene", 1, "Yes", "well"), asked("scene", 2, "Yes", "yes"))
    assert (found["incomplete"], found["unmatched"], found["score"]) == (2, 1, 100)
    with pytest.raises(UserError, match="no subtask 'ocr'; did you mean 'OCR'"):
        MMEScore().update(["yes"], [{"answer": "yes", "category": "ocr", "image": 1}])


def test_pope() -> None:
    pairs = [("yes", "yes")] * 6 + [("yes", "no")] * 2 + [("no", "no")] * 3 + [("no", "yes")] * 4
    pairs += [("hm", "yes"), ("hm", "no")]  # neither: a miss where yes was right, and no yes where no was
    found = scored(POPEScore(), *((said, {"answer": right}) for said, right in pairs))
    assert found["precision"] == pytest.approx(100 * 6 / 8)
    assert found["recall"] == pytest.approx(100 * 6 / 11)
    assert found["f1"] == pytest.approx(100 * 2 * 6 / (8 + 11))
    assert found["accuracy"] == pytest.approx(100 * 9 / 17)
    assert found["yes"] == pytest.approx(100 * 8 / 17)
    assert (found["n"], found["unmatched"]) == (17, 2)


def test_pope_without_a_yes_is_zero_not_an_error() -> None:
    found = scored(POPEScore(), ("no", {"answer": "no"}))
    assert (found["f1"], found["precision"], found["recall"], found["accuracy"]) == (0, 0, 0, 100)


def hallusion(said: str, right: object, kind: str, figure: int, question: int) -> tuple[str, dict]:
    keys = ("answer", "category", "subcategory", "set_id", "figure_id", "question_id")
    return said, dict(zip(keys, (right, kind, "ocr", 0, figure, question), strict=True))


def test_hallusion_bench_by_question_figure_and_pair() -> None:
    found = scored(
        HallusionBenchScore(),
        hallusion("Yes", "1", "VS", 0, 0),  # no picture: no figure
        hallusion("No", "1", "VS", 0, 1),
        hallusion("Yes", "1", "VS", 1, 0),
        hallusion("No", "0", "VS", 1, 1),
        hallusion("Yes", "1", "VD", 0, 0),  # the same ids under VD: others
        hallusion("Perhaps", "0", "VD", 0, 1),
    )
    assert found["aAcc"] == pytest.approx(100 * 4 / 6)
    assert found["fAcc"] == 50  # VS figure 1 right, VD figure 0 not
    assert found["qAcc"] == 50  # VS 0, VD 0 of four
    assert found["score"] == pytest.approx((400 / 6 + 100) / 3)
    assert (found["n"], found["unmatched"], found["VD/unmatched"]) == (6, 1, 1)
