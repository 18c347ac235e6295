"""P40: golden answers of multiple choice, by letter, under rotations, by likelihood; and perplexity."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.text import Perplexity as LogitPerplexity

from mmframe.errors import UserError
from mmframe.metrics.choice import CircularAccuracy, OptionAccuracy
from mmframe.metrics.likelihood import LikelihoodChoice
from mmframe.metrics.option_letters import named_options, option_letter
from mmframe.metrics.perplexity import Perplexity
from tests.metrics.scored import scored

OPTIONS = {"A": "a cat", "B": "a dog", "C": "two birds", "D": "nothing"}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("B", "B"),
        ("b", "B"),
        (" (B).\n", "B"),
        ("**B**", "B"),
        ("（Ｂ）", "B"),
        ("B. a dog", "B"),
        ("B) because of the tail, which no cat or bird in this world has", "B"),
        ("B\na dog", "B"),
        ("The answer is B.", "B"),
        ("The answer is (B) a dog", "B"),
        ("Answer: B", "B"),
        ("the correct option is **B**", "B"),
        ("答案是B", "B"),
        ("I'd go for B", "B"),
        ("A is right", "A"),
        ("A dog is on the left", "B"),  # an article; the text of one option
        ("A big animal", None),
        ("A and B", None),
        ("The answer is A. No: the answer is B.", None),
        ("A is wrong, so the answer is B", "B"),
        ("a dog", "B"),
        ("It's a dog.", "B"),
        ("a cat and a dog", None),
        ("E", None),  # no such option
        ("Dog", None),
        ("", None),
        ("I cannot see the picture", None),
        ("BC", None),
    ],
)
def test_the_letter_is_read_by_rules_and_never_guessed(said: str, expected: str | None) -> None:
    assert option_letter(said, OPTIONS) == expected


def test_options_may_be_a_list() -> None:
    assert named_options(["x", 2]) == {"A": "x", "B": "2"}
    with pytest.raises(UserError, match="27 options"):
        named_options(["x"] * 27)
    with pytest.raises(UserError, match="single capital letters, not 'a'"):
        named_options({"a": "x"})


def test_an_answer_that_cannot_be_read_is_wrong_and_counted() -> None:
    found = scored(
        OptionAccuracy(),
        ("B", {"answer": "B", "options": OPTIONS, "category": "animals"}),
        ("A", {"answer": "B", "options": OPTIONS, "category": "animals"}),
        ("hm", {"answer": "A", "options": OPTIONS, "category": "other"}),
        ("", {"answer": "A", "options": OPTIONS}),
    )
    assert (found["accuracy"], found["n"], found["unmatched"]) == (25, 4, 2)
    assert (found["animals/accuracy"], found["animals/unmatched"], found["other/unmatched"]) == (50, 0, 1)
    with pytest.raises(UserError, match="'E' is none of the options A, B, C, D"):
        OptionAccuracy().update(["A"], [{"answer": "E", "options": OPTIONS}])


def rotation(group: int, said: str, answer: str, options: tuple[str, ...] = ("x", "y", "z")) -> tuple[str, dict]:
    return said, {"answer": answer, "options": list(options), "group": group}


def test_a_question_counts_when_all_of_its_rotations_are_right() -> None:
    found = scored(
        CircularAccuracy(),
        *(rotation(1, letter, letter) for letter in "ABC"),
        *(rotation(2, "A", letter) for letter in "ABC"),  # always the first: a third of the samples, no question
        rotation(3, "A", "A"),
        rotation(3, "B", "B"),
        rotation(3, "what?", "C"),
        rotation(4, "A", "A"),
    )
    assert (found["accuracy"], found["questions"]) == (50, 4)
    assert found["vanilla"] == pytest.approx(70) and found["n"] == 10
    assert (found["incomplete"], found["unmatched"]) == (1, 1)


def test_likelihood_is_compared_as_a_sum_a_token_and_a_byte() -> None:
    options = ["fox", "hedgehog"]
    found = scored(
        LikelihoodChoice(),
        ([(-3.0, 1), (-4.0, 4)], {"answer": 0, "options": options}),  # a token -3, -1; a byte -1, -0.5
        ([(-3.0, 1), (-9.0, 4)], {"answer": 0, "options": options}),  # a token -3, -2.25; a byte -1, -1.125
        ([(-2.0, 1), (-2.0, 1)], {"answer": 0, "options": ["大", "abc"]}),  # equal, three bytes each: the first
        ([(math.nan, 1), (-1.0, 1)], {"answer": 1, "options": options}),
        ([(-math.inf, 1), (-1.0, 1)], {"answer": 1, "options": options}),
    )
    assert [found[key] for key in ("accuracy", "accuracy_per_token", "accuracy_per_byte")] == [60, 20, 40]
    assert (found["n"], found["unmatched"]) == (5, 2)
    with pytest.raises(UserError, match="1 likelihoods.*2 options"):
        LikelihoodChoice().update([[(-1.0, 1)]], [{"answer": 0, "options": options}])


def test_perplexity_of_sums_is_that_of_all_tokens() -> None:
    found = scored(Perplexity(), (6.0, {"tokens": 3, "bytes": 8}), (2.0, {"tokens": 1, "bytes": 8}))
    assert (found["nll"], found["tokens"], found["perplexity"]) == (2.0, 4, pytest.approx(math.exp(2)))
    assert found["bits_per_byte"] == pytest.approx(8 / math.log(2) / 16)
    without = scored(Perplexity(), (6.0, {"tokens": 3, "bytes": 8}), (2.0, {"tokens": 1}))
    assert math.isnan(without["bits_per_byte"]) and without["nll"] == 2.0
    assert scored(Perplexity(), (1e6, {"tokens": 1}))["perplexity"] == math.inf
    assert math.isnan(scored(Perplexity(), (0.0, {"tokens": 0}))["perplexity"])


def test_perplexity_is_that_of_torchmetrics_on_logits() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 7, 11), torch.randint(0, 11, (4, 7))
    labels[1, 3:] = -100
    theirs = LogitPerplexity(ignore_index=-100)
    theirs.update(logits, labels)
    ours = Perplexity()
    for row_TV, row_T in zip(logits, labels, strict=True):
        loss = torch.nn.functional.cross_entropy(row_TV.double(), row_T, reduction="sum", ignore_index=-100)
        ours.update([float(loss)], [{"tokens": int((row_T != -100).sum())}])
    assert ours.compute()["perplexity"] == pytest.approx(float(theirs.compute()), rel=1e-5)
