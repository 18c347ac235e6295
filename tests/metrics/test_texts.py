"""P40: golden answers of the metrics that compare an answer with accepted texts."""

from __future__ import annotations

import pytest

from mmframe.errors import UserError
from mmframe.metrics.anls import ANLS
from mmframe.metrics.character_errors import CharacterErrorRate
from mmframe.metrics.edit_distance import edit_distance
from mmframe.metrics.exact_match import ExactMatch, GQAAccuracy
from mmframe.metrics.normalisers import NORMALISERS
from mmframe.metrics.ocrbench import CATEGORIES, FORMULAS, OCRBenchScore
from mmframe.metrics.relaxed import RelaxedAccuracy
from mmframe.metrics.vqa import VQAAccuracy
from mmframe.metrics.vqa_answers import CONTRACTIONS, textvqa, vqa_v2
from tests.metrics.scored import headline, scored


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("The Cat", "cat"),
        ("two  dogs\n", "2 dogs"),
        ("None", "0"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),  # both apostrophes forgotten: not in the official table
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),  # the official table has it the wrong way round
        ("red-blue", "red blue"),
        ("red - blue", "red blue"),
        ("(red)", "red"),
        ("what?", "what"),
        ("1,000", "1000"),  # a comma between digits: marks are glued, not replaced by a space
        ("1,000/2", "10002"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("U.S.", "us"),
        ("." * 40, "." * 8),  # the official call removes 32 periods and no more
        ("a", ""),
        ("", ""),
        ("Café, 大象", "café 大象"),
    ],
)
def test_vqa_answers_are_normalised_as_the_official_code_does(given: str, expected: str) -> None:
    assert vqa_v2(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("red,blue", "redblue"),  # TextVQA drops commas and question marks before anything else
        ("The two-dogs, a  Cat!", "2 dogs cat"),
        ("dog's", "dog 's"),
        ("one's", "1 's"),
    ],
)
def test_textvqa_answers_are_normalised_as_its_evaluator_does(given: str, expected: str) -> None:
    assert textvqa(given) == expected


def test_words_with_a_forgotten_apostrophe_are_those_of_the_official_table() -> None:
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS["yalld've" if "yalld've" in CONTRACTIONS else "y'alld've"] == "y'all'd've"
    assert not {"couldntve", "yalldve", "dog"} & set(CONTRACTIONS)


@pytest.mark.parametrize(
    ("said", "answers", "expected"),
    [
        ("cat", ["cat"] * 10, 100),
        ("cat", ["cat"] * 1 + ["dog"] * 9, 100 * 9 * (1 / 3) / 10),  # left out once, found by the nine others
        ("cat", ["cat"] * 3 + ["dog"] * 7, 100 * (3 * (2 / 3) + 7) / 10),
        ("cat", ["cat"] * 4 + ["dog"] * 6, 100),
        ("", ["cat"] * 9 + ["dog"], 0),
        ("The cat.", ["a cat"] * 9 + ["dog"], 100),
        ("Yes.", ["yes"] * 10, 0),  # all gave one text: the official code compares the answer as it is
        ("yes\n", ["yes"] * 10, 100),
        ("Yes.", ["yes"] * 9 + ["Yes"], 100),
    ],
)
def test_vqa_accuracy_leaves_each_annotator_out(said: str, answers: list[str], expected: float) -> None:
    assert headline(VQAAccuracy(), (said, {"answers": answers})) == pytest.approx(expected, abs=1e-12)


def test_textvqa_always_normalises() -> None:
    assert headline(VQAAccuracy(rules="textvqa"), ("Yes.", {"answers": ["yes"] * 10})) == 100


def test_misspelt_rules_are_named() -> None:
    with pytest.raises(UserError, match="rules='textvqua'.*did you mean 'textvqa'"):
        VQAAccuracy(rules="textvqua")


@pytest.mark.parametrize(
    ("said", "answers", "expected"),
    [
        ("hello world", "Hello  World", 100),
        ("helo world", ["hello world", "x"], 100 * 10 / 11),
        ("abcd", "abxy", 50),  # at the threshold: the script counts it, the papers' formula does not
        ("abc", "axyz", 0),  # 0.25
        ("", "", 100),
        ("", "abc", 0),
        ("abc", ["", "abd"], 100 * 2 / 3),
        ("a b", "a        b", 100),
        ("ab", "a        b", 100 * (1 - 1 / 10)),  # the length is taken before spaces are evened out
        ("strasse", "straße", 100 * (1 - 2 / 7)),  # and of the capitals: "STRASSE" has seven
        ("大象", "大家", 50),
    ],
)
def test_anls(said: str, answers: str | list[str], expected: float) -> None:
    assert headline(ANLS(), (said, {"answers": answers})) == pytest.approx(expected, abs=1e-12)


def test_the_threshold_of_anls_is_an_argument() -> None:
    assert headline(ANLS(threshold=0.51), ("abcd", {"answers": "abxy"})) == 0
    with pytest.raises(UserError, match="threshold=2"):
        ANLS(threshold=2)


@pytest.mark.parametrize(
    ("said", "answer", "expected"),
    [
        ("10.5", "10", True),
        ("10.51", "10", False),
        ("9.5 ", "10", True),
        ("-9.6", "-10", True),
        ("10", "-10", False),
        ("5%", "0.05", True),
        ("5%", "5", False),
        ("5.2%", "5%", True),
        ("5", "5%", False),
        ("%", "5%", False),
        ("0", "0", True),
        ("0.0", "0", False),  # a target of 0 is a text
        ("0.0001", "0", False),
        ("1,000", "1000", False),
        ("1,000", "1,000", True),
        ("$5", "5", False),
        ("2019", "2010", True),  # years are numbers like any other
        ("Yes", "yes", True),
        ("yes.", "yes", False),
        ("", "yes", False),
        ("nan", "nan", False),  # Python reads them as numbers
    ],
)
def test_relaxed_accuracy(said: str, answer: str, expected: bool) -> None:
    assert headline(RelaxedAccuracy(), (said, {"answers": answer})) == 100 * expected


def test_any_accepted_answer_will_do() -> None:
    assert headline(RelaxedAccuracy(), ("7", {"answers": ["3", "7"]})) == 100
    assert headline(ExactMatch(), ("navy", {"answers": ["blue", "Navy"]})) == 100
    with pytest.raises(UserError, match="without any answer"):
        ExactMatch().update(["x"], [{"answers": []}])


@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("as_given", "Red", "Red"),
        ("ignore_case", " Red.\n", "red."),
        ("spaces", " a \n b", "a b"),
        ("no_periods", "U.S. ", "us"),
        ("no_punctuation", "it's, (RED)!", "its red"),
        ("vqa_v2", "The two", "2"),
        ("textvqa", "dog's", "dog 's"),
    ],
)
def test_normalisers(name: str, said: str, expected: str) -> None:
    assert NORMALISERS[name](said) == expected


def test_exact_match_says_what_it_evens_out() -> None:
    sample = ("Red.", {"answers": "red"})
    assert [headline(ExactMatch(name), sample) for name in ("as_given", "ignore_case", "no_periods")] == [0, 0, 100]
    with pytest.raises(UserError, match="ExactMatch: normalise='ignorecase'.*did you mean 'ignore_case'"):
        ExactMatch("ignorecase")


def test_gqa_halves() -> None:
    found = scored(
        GQAAccuracy(),
        ("Yes.", {"answers": "yes", "category": "binary"}),
        ("no", {"answers": "yes", "category": "binary"}),
        ("cat", {"answers": "cat", "category": "open"}),
    )
    assert found["accuracy"] == pytest.approx(200 / 3)
    assert (found["binary/accuracy"], found["binary/n"], found["open/accuracy"]) == (50, 2, 100)
    assert headline(GQAAccuracy("as_given"), ("Yes", {"answers": "yes"})) == 0


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("", "", 0), ("", "ab", 2), ("kitten", "sitting", 3), ("ab", "ba", 2), ("大象", "象", 1), ("a😀b", "ab", 1)],
)
def test_edit_distance(one: str, other: str, expected: int) -> None:
    assert edit_distance(one, other) == edit_distance(other, one) == expected


def test_character_error_rate_weighs_texts_by_their_length() -> None:
    found = scored(
        CharacterErrorRate(), ("he1lo", {"text": "hello"}), ("x", {"text": "abcde"}), ("a  b ", {"text": "a b"})
    )
    assert found == {"cer": pytest.approx(100 * 6 / 13), "exact": pytest.approx(100 / 3), "n": 3}
    assert headline(CharacterErrorRate(), ("abcd", {"text": "x"})) == 400


def test_ocrbench_counts_answers_that_hold_an_accepted_text() -> None:
    found = scored(
        OCRBenchScore(),
        ("The sign says\nSTOP now.", {"answers": ["stop now", "halt"], "category": CATEGORIES[0]}),
        ("sto p", {"answers": "stop", "category": CATEGORIES[1]}),
        ("\\frac { X } { 2 }", {"answers": ["\\frac{X}{2}"], "category": FORMULAS}),
        ("\\frac{x}{2}", {"answers": ["\\frac{X}{2}"], "category": FORMULAS}),  # capitals count in formulas
        ("", {"answers": "total", "category": "Key Information Extraction"}),
    )
    assert (found["score"], found["accuracy"], found["text_recognition"]) == (2, 40, 1)
    assert (found[f"{FORMULAS}/score"], found[f"{FORMULAS}/n"]) == (1, 2)


def test_ocrbench_refuses_what_it_cannot_score() -> None:
    with pytest.raises(UserError, match="did you mean 'Doc-oriented VQA'"):
        OCRBenchScore().update(["x"], [{"answers": "x", "category": "Doc oriented VQA"}])
    with pytest.raises(UserError, match="empty accepted answer"):
        OCRBenchScore().update(["x"], [{"answers": ["x", " "], "category": FORMULAS}])
