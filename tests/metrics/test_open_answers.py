"""P40: golden answers of questions without choices: MMMU, MathVista, MATH, MM-Vet."""

from __future__ import annotations

from typing import Any

import pytest

from mmframe.errors import UserError
from mmframe.metrics.competition_maths import MATHAccuracy
from mmframe.metrics.judged import VERDICT, Unreadable
from mmframe.metrics.latex_answers import final_answer, normalise_latex, same_answer
from mmframe.metrics.mathvista import MathVistaAccuracy
from mmframe.metrics.mm_vet import MMVetScore
from mmframe.metrics.mmmu import DISCIPLINE, MMMUAccuracy, open_candidates
from mmframe.metrics.stated_numbers import one_list, one_number
from tests.metrics.scored import scored

# ---- MMMU


@pytest.mark.parametrize(
    ("said", "right", "score"),
    [
        ("1250", "1,250", 1),
        ("The total is $1,250.", "1250", 1),
        ("x = 0.333", "0.33", 1),  # two decimals
        ("x = 0.333\ny = 2", "0.333", 0),  # "=" counts in the last line alone, and a line without a lead says nothing
        ("so it is 3\nwhich is what we wanted", "3", 1),
        ("It is Mitosis", "mitosis", 1),
        ("It is mitosis in the cell", "mitosis", 0),  # as there: the shortest rest behind an "is " is "in the cell"
        ("mitosis", ["meiosis", "mitosis"], 1),
        ("meiosis", "['meiosis', 'mitosis']", 1),
        ("It is meiosis", "mitosis", 0),
        ("It is b", "b", 1),
        ("able", "b", 0),  # a single letter is no part of a word
        ("1e3", "1000", 1),
        ("about 7 or 8", "8", 1),  # any of its numbers, as the official code has it
        ("-5", "5", 0),
        ("", "5", 0),
    ],
)
def test_open_questions_of_mmmu(said: str, right: Any, score: float) -> None:
    row = MMMUAccuracy().score(said, {"answer": right, "options": [], "category": "Math"})
    assert (row["score"], row["unmatched"]) == (score, said == "")


def test_open_candidates_are_the_shortest_rests_and_their_numbers() -> None:
    found = open_candidates("We see that so the answer is 12 m.\nThus r = 1,000.5")
    assert found[:2] == ["12 m.", 1000.5] and {12.0, 1000.5} <= set(found)


def test_mmmu_is_counted_by_subject_and_discipline() -> None:
    choice = {"options": ["a ball", "a cube"], "answer": "B"}
    found = scored(
        MMMUAccuracy(),
        ("B", choice | {"category": "Math"}),
        ("no", choice | {"category": "Math"}),
        ("9", {"options": [], "answer": 9, "category": "Physics"}),
        ("A", choice | {"category": "Art_Theory"}),
    )
    assert (found["accuracy"], found["n"], found["unmatched"]) == (50, 4, 1)
    assert (found["Math/accuracy"], found["Physics/accuracy"], found["Art_Theory/accuracy"]) == (50, 100, 0)
    assert found["Science/accuracy"] == pytest.approx(200 / 3) and found["Science/n"] == 3
    assert found["Art and Design/n"] == 1 and len(DISCIPLINE) == 30
    with pytest.raises(UserError, match="no subject 'Maths'; did you mean 'Math'"):
        MMMUAccuracy().score("A", choice | {"category": "Maths"})
    with pytest.raises(UserError, match="an empty accepted answer"):
        MMMUAccuracy().score("A", {"options": [], "answer": ["x", " "], "category": "Math"})


# ---- MathVista


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("14", 14),
        ("14.", 14),
        ("There are 14 of them.", 14),
        ("$1,449.50", 1449.5),
        ("x=-5", -5),
        ("−5", -5),
        ("50%", 50),
        ("3 + 4 = 7. The answer is 7", 7),
        ("The answer is 6.\nNo: the answer is 7.", 7),
        ("Answer: **7**", 7),
        ("it is $\\boxed{7}$, as 3 + 4 is 7", None),  # two in the line
        ("7, so 7", 7),
        ("- 7 apples", 7),
        ("3 or 4", None),
        ("Answer: 3 or 4", None),
        ("3/4", None),
        ("10-12", None),
        ("1 000", None),
        ("COVID-19", None),
        ("14cm", None),
        ("the 2nd", None),
        ("10²", None),
        ("½", None),
        ("1.2.3", None),
        ("seven", None),
        ("1e999", None),
        ("9" * 40, None),
        ("", None),
    ],
)
def test_one_number_is_read_and_never_guessed(said: str, number: float | None) -> None:
    assert one_number(said) == number


def test_one_list_is_read_and_never_guessed() -> None:
    assert one_list("between [2007, 2008].") == one_list("[2007,2008.0]") == [2007, 2008]
    assert [one_list(said) for said in ("2007 and 2008", "[1] [2]", "[]", "[a, 1]", "[1/2]")] == [None] * 5


def question(kind: str, right: str, choices: list[str] | None = None, digits: float | None = None) -> dict[str, Any]:
    sort = "multi_choice" if choices else "free_form"
    return {"answer": right, "question_type": sort, "answer_type": kind, "choices": choices, "precision": digits}


@pytest.mark.parametrize(
    ("said", "reference", "score", "unmatched"),
    [
        ("B", question("text", "8/11", ["3/11", "8/11"]), 1, False),
        ("8/11", question("text", "8/11", ["3/11", "8/11"]), 1, False),
        ("B", question("text", "B", ["B", "A"]), 1, False),  # the text of a choice goes before a letter
        ("9/11", question("text", "8/11", ["3/11", "8/11"]), 0, True),  # the official code takes the nearest
        ("14.7", question("integer", "14"), 1, False),  # cut off, as there
        ("0.456", question("float", "0.5", digits=1.0), 1, False),
        ("0.44", question("float", "0.5", digits=1.0), 0, False),
        ("1.2", question("float", "1.20", digits=2.0), 1, False),
        ("[2, 3]", question("list", "[2,3]"), 1, False),
        ("[3, 2]", question("list", "[2, 3]"), 0, False),
        ("2 and 3", question("list", "[2, 3]"), 0, True),
    ],
)
def test_answers_of_mathvista(said: str, reference: dict, score: float, unmatched: bool) -> None:
    row = MathVistaAccuracy().score(said, reference)
    assert (row["score"], row["unmatched"], row["by"]) == (score, unmatched, "rules")


def test_a_verdict_counts_where_rules_read_nothing_and_only_there() -> None:
    metric, number = MathVistaAccuracy(), question("integer", "14")
    assert metric.score("fourteen", number | {VERDICT: "14"})["by"] == "judge"
    assert metric.score("fourteen", number | {VERDICT: "14"})["score"] == 1
    assert metric.score("13", number | {VERDICT: "14"}) == {"score": 0, "chosen": 13, "unmatched": False, "by": "rules"}
    assert metric.score("hm", number | {VERDICT: None})["unmatched"]
    assert metric.read_judge("Extracted answer: 14.", number) == "14." and metric.read_judge("NONE.", number) is None
    for reply in ("fourteen", "", "<html>", "13 or 14"):
        with pytest.raises(Unreadable):
            metric.read_judge(reply, number)
    found = scored(metric, ("14", number | {"category": ["statistics", "arithmetic"]}))
    assert (found["statistics/accuracy"], found["arithmetic/n"]) == (100, 1)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (question("text", "dog", ["cat"]), "the answer 'dog' is none of the choices"),
        (question("integer", "many"), "'many' is no integer"),
        (question("float", "0.5"), "needs its precision"),
        (question("floats", "0.5"), "did you mean 'float'"),
    ],
)
def test_a_question_of_mathvista_that_cannot_be_scored_is_named(reference: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        MathVistaAccuracy().score("1", reference)


# ---- MATH


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"Thus $\boxed{1}$, or rather $\boxed{\frac{1}{\sqrt{2}}}$.", r"\frac{1}{\sqrt{2}}"),
        (r"$\boxed 5$", "5"),
        (r"\fbox{7}", "7"),
        (r"\boxed{5", None),  # cut off: who knows how it went on
        ("Final Answer: The final answer is $x = 5$. I hope it is correct.", "x = 5"),
        ("The answer is 3.5.", "3.5"),
        ("**Answer:** 12", "12"),
        (r"\frac{3}{4}", r"\frac{3}{4}"),
        ("Evelyn", "Evelyn"),
        ("First we get 3, and then we get -7/2.", "-7/2"),
        ("I do not know", None),
        ("", None),
    ],
)
def test_final_answers(solution: str, answer: str | None) -> None:
    assert final_answer(solution) == answer


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\dfrac12", r"\frac{1}{2}"),
        (r"\tfrac1{72}", "1/72"),
        (".5", r"\frac{1}{2}"),
        ("0.50", "1/2"),
        (r"-\frac{1}{2}", "-1/2"),
        (r"10,\!000", "10000"),
        ("1,000", "1{,}000"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"5\text{ cm}", "5"),
        (r"90^\circ", "90"),
        (r"\$5", "5"),
        (r"50\%", "50"),
        ("k = 3", "3"),
        ("x^2 + 1", "x^2+1"),
    ],
)
def test_forms_of_one_answer_are_the_same(one: str, other: str) -> None:
    assert same_answer(one, other) and same_answer(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [("12", "1.2"), ("1,2", "12"), ("(1,2)", "(2,1)"), ("2x+2", "2(x+1)"), ("1/0", "2/0"), ("9" * 99, "9" * 98)],
)  # fmt: skip
def test_other_answers_are_not(one: str, other: str) -> None:
    assert not same_answer(one, other)


def test_maths_is_counted_by_subject_and_level() -> None:
    found = scored(
        MATHAccuracy(),
        (r"\boxed{\frac12}", {"answer": r"so it is $\boxed{0.5}$.", "category": ["Algebra", "Level 1"]}),
        (r"\boxed{3}", {"answer": "4", "category": ["Algebra", "Level 2"]}),
        ("no idea at all", {"answer": "4"}),
    )
    assert found["accuracy"] == pytest.approx(100 / 3) and (found["n"], found["unmatched"]) == (3, 1)
    assert (found["Algebra/accuracy"], found["Level 1/accuracy"], found["Level 2/n"]) == (50, 100, 1)
    with pytest.raises(UserError, match="holds no answer"):
        MATHAccuracy().score("1", {"answer": r"\boxed{"})
    assert normalise_latex(normalise_latex(r"\dfrac12")) == normalise_latex(r"\dfrac12")


# ---- MM-Vet


@pytest.mark.parametrize(
    ("said", "right", "score"),
    [
        ("x = -1 or x = -5.", "-1<AND>-5", 1),
        ("x = -5 or 5", "-1<AND>-5", 0.5),
        ("x = 1", "-1<AND>-5", 0),
        ("in 15 minutes", "5", 0),
        ("-5", "5", 0),
        ("5.5", "5", 0),
        ("It costs 5.", "5", 1),
        ("A  DOG runs", "a dog", 1),
        ("a dogs", "a dog", 0),
        ("It is a puppy", "a dog<OR>a puppy.", 1),
        ("red", "red<AND>blue<OR>green", 0.5),
        ("green", "red<AND>blue<OR>green", 1),
        ("", "green", 0),
    ],
)
def test_what_stands_in_an_answer_to_mm_vet(said: str, right: str, score: float) -> None:
    row = MMVetScore().score(said, {"answer": right, "category": ["ocr"]})
    assert row == {"score": score, "unmatched": score < 1, "by": "rules"}


def test_grades_are_counted_by_capability() -> None:
    found = scored(
        MMVetScore(),
        ("a", {"answer": "x", "category": ["ocr", "math"], VERDICT: 0.5}),
        ("b", {"answer": "x", "category": ["ocr"], VERDICT: 1.0}),
        ("c", {"answer": "x", "category": ["rec", "rec"], VERDICT: 0.0}),
    )
    assert (found["score"], found["unmatched"]) == (50, 0)
    assert (found["ocr/score"], found["math/score"], found["rec/n"]) == (75, 50, 1)
    with pytest.raises(UserError, match="has an empty part"):
        MMVetScore().score("x", {"answer": "a<AND>", "category": []})


@pytest.mark.parametrize(
    ("reply", "grade"), [("0.7", 0.7), (" 1.0\n", 1), ("0", 0), ("Correctness: 0.5", 0.5), ("The score is 1.", 1)]
)
def test_grades_that_can_be_read(reply: str, grade: float) -> None:
    assert MMVetScore().read_judge(reply, {}) == grade


@pytest.mark.parametrize(
    "reply", ["", "1.1", "-0.5", "nan", "half", "0.5 or 0.6", "50%", "<p>1</p>", "10", '{"score": 1}']
)
def test_grades_that_cannot(reply: str) -> None:
    with pytest.raises(Unreadable):
        MMVetScore().read_judge(reply, {})
