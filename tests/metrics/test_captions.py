"""P40: golden answers of the caption metrics."""

from __future__ import annotations

import math

import pytest

from mmframe.errors import UserError
from mmframe.metrics.bleu import BLEU4
from mmframe.metrics.captions import caption_words
from mmframe.metrics.cider import CIDEr
from mmframe.metrics.rouge import ROUGEL
from tests.metrics.scored import headline, scored


@pytest.mark.parametrize(
    ("given", "expected"),
    [  # as the Java tokenizer and COCO's list of punctuation leave them
        ("A man's well-known dog isn't here; cannot go...", "a man 's well-known dog is n't here can not go"),
        ('"Wow!" it costs $5.00, i.e. 10% off.', "wow it costs $ 5.00 i.e. 10 % off"),
        ("black/white TV, U.S. flag; Mr. Smith's 3,000 cats", "black/white tv u.s. flag mr. smith 's 3,000 cats"),
        ("they're we'll he'd I've don't won't", "they 're we 'll he 'd i 've do n't wo n't"),
        ("café 大象 – dash 12:30 o'clock", "café 大象 dash 12:30 o'clock"),
        ("(brown) [b]", "-lrb- brown -rrb- -lsb- b -rsb-"),  # the list has them in capitals: they stay
        ("ok?! hi!!! yes,no", "ok ?! hi !!! yes no"),
        ("", ""),
    ],
)
def test_words_of_a_caption(given: str, expected: str) -> None:
    assert caption_words(given) == expected.split()


def test_bleu_of_one_sentence_by_hand() -> None:
    found = scored(BLEU4(), ("the cat sat on the mat", {"captions": ["The cat sat on a mat.", "a cat is on the mat"]}))
    # "the" is twice in the answer and once in each caption; "sat on the" is in none
    shares = [5 / 6, 5 / 5, 3 / 4, 1 / 3]
    expected = {f"bleu{n}": pytest.approx(100 * math.prod(shares[:n]) ** (1 / n)) for n in range(1, 5)}
    assert found == expected | {"n": 1}


def test_bleu_is_of_the_corpus_and_short_captions_pay() -> None:
    sample = ("a b c d", {"captions": ["a b c d e f g h"]})
    assert headline(BLEU4(), sample) == pytest.approx(100 * math.exp(1 - 2))
    assert headline(BLEU4(), ("a b c d", {"captions": ["x a b c d", "a b c"]})) == pytest.approx(100)  # the shorter
    assert headline(BLEU4(), ("", {"captions": ["a b"]})) == pytest.approx(0, abs=1e-6)


def test_rouge_takes_the_best_precision_and_the_best_recall() -> None:
    found = headline(ROUGEL(), ("a b c", {"captions": ["a x c y", "b"]}))
    precision, recall = 2 / 3, 1.0  # of the first, of the second
    assert found == pytest.approx(100 * (1 + 1.44) * precision * recall / (recall + 1.44 * precision))
    assert headline(ROUGEL(), ("", {"captions": ["a"]})) == headline(ROUGEL(), ("x", {"captions": ["a"]})) == 0
    assert headline(ROUGEL(), ("A cat.", {"captions": ["a cat"]})) == pytest.approx(100)


def test_cider_of_copied_captions_is_a_thousand() -> None:
    samples = [
        (text, {"captions": [text]}) for text in ("a red bus in town", "two dogs play with me", "big waves roll on")
    ]
    assert headline(CIDEr(), *samples) == pytest.approx(1000)
    assert headline(CIDEr(), samples[0]) == 0  # what is in all pictures tells nothing apart


def test_cider_by_hand() -> None:
    """Two pictures, words that only one has weigh log 2, one that both have nothing."""
    found = headline(CIDEr(), ("a b", {"captions": ["a b", "a c"]}), ("x", {"captions": ["a y"]}))
    # first: "b" and "a b" tell it apart. With "a b" two of four orders agree in full, with "a c" none
    assert found == pytest.approx(100 * 10 * ((2 / 4) / 2 + 0) / 2)


def test_captions_are_a_list() -> None:
    for wrong in ("a cat", []):
        with pytest.raises(UserError, match="`captions` of a reference is a list"):
            CIDEr().update(["a"], [{"captions": wrong}])


def test_texts_may_be_tokenised_already() -> None:
    assert headline(ROUGEL(tokenised=True), ("A cat .", {"captions": ["a cat"]})) < 50
