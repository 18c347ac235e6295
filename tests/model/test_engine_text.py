"""From logits to tokens and from tokens to text."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mmframe.errors import UserError
from mmframe.processing import ByteTokenizer
from mmframe.processing.tokenizer import Tokenizer
from mmframe.sampling import RowSampler, SamplingParams, sample
from mmframe.streaming import TextStream
from tests.data.support import FixtureTokenizer

# ---- sampling


@pytest.mark.parametrize(("temperature", "top_k", "top_p", "penalty"), [
    (1.0, 0, 1.0, 1.0),
    (0.7, 0, 1.0, 1.0),
    (1.0, 5, 1.0, 1.0),
    (1.0, 0, 0.6, 1.0),
    (1.3, 9, 0.9, 1.3),
    (2.0, 100, 0.01, 0.8),
])  # fmt: skip
def test_chances_are_those_of_transformers(temperature: float, top_k: int, top_p: float, penalty: float) -> None:
    said = torch.tensor([3, 5, 5, 20])
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    theirs = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(temperature)])
    if top_k:
        theirs.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        theirs.append(TopPLogitsWarper(top_p))
    for _ in range(5):
        logits = 3 * torch.randn(40)
        expected = theirs(said[None], logits[None].clone())[0].softmax(-1)  # type: ignore[arg-type]
        torch.testing.assert_close(RowSampler(params, said, 40, "cpu").chances(logits), expected)


def test_draws_follow_the_chances() -> None:
    sampler = RowSampler(SamplingParams(temperature=1.0, top_k=3), torch.tensor([]).long(), 6, "cpu")
    logits = torch.tensor([0.0, 1.0, -5.0, 2.0, -9.0, 0.5])
    draws = torch.tensor([sampler(logits) for _ in range(3000)])
    seen = torch.bincount(draws, minlength=6) / 3000
    torch.testing.assert_close(seen, sampler.chances(logits), atol=0.03, rtol=0)


def test_greedy_is_the_likeliest_token_also_at_a_tiny_temperature() -> None:
    logits = torch.randn(4, 30)
    best = logits.argmax(-1).tolist()
    none = torch.tensor([]).long()
    for params in (
        SamplingParams(),
        SamplingParams(temperature=2.0, top_k=1),
        SamplingParams(temperature=1e-30),
        SamplingParams(temperature=1.0, top_p=1e-9),
    ):
        assert sample(logits, [RowSampler(params, none, 30, "cpu") for _ in range(4)]) == best


def test_what_was_said_counts_from_then_on() -> None:
    sampler = RowSampler(SamplingParams(repetition_penalty=1.5), torch.tensor([0]), 4, "cpu")
    logits = torch.tensor([9.0, 7.0, 5.0, -1.0])
    assert [sampler(logits) for _ in range(3)] == [1, 0, 0]  # 6, 7, 5 -> 6, 4.67, 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"temperature": -0.1}, "temperature=-0.1 must be 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0}, "top_p=0 must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
        ({"stop": ("a", "")}, "stop=.* must be texts that are not empty"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_params_are_one_clear_line(wrong: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"sampling: {message}"):
        SamplingParams(**wrong)


def test_stop_may_be_one_text_or_several() -> None:
    assert SamplingParams(stop="END").stop == ("END",)  # type: ignore[arg-type]
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]


# ---- text streams


class SpacingTokenizer(ByteTokenizer):
    """Whole words with a space before each, dropped at the beginning of a text: as sentencepiece decodes."""

    words = ["Hello", "world", "of", "words"]

    def decode(self, ids: object, special: bool = False) -> str:
        return "".join(" " + self.words[i] for i in ids).removeprefix(" ")  # type: ignore[union-attr, attr-defined]


def pieces_of(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[TextStream, list[str]]:
    stream = TextStream(tokenizer, stop)
    pieces = []
    for token in ids:
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    return stream, [*pieces, stream.end()]


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), FixtureTokenizer()], ids=lambda t: type(t).__name__)
def test_a_stream_never_shows_half_a_character(tokenizer: Tokenizer) -> None:
    text = "na\u00efve \u4f60\u597d \U0001f642\u200d\U0001f680 end"
    ids = tokenizer.encode(text)
    stream, pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == text == stream.text == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) == len(text), "each character as soon as it is whole"
    for count in range(len(ids)):  # an answer that is cut in the middle of a character ends before it
        stream, pieces = pieces_of(tokenizer, ids[:count])
        assert text.startswith(stream.text) and "".join(pieces) == stream.text
        assert len(text) - len(stream.text) <= len(ids) - count + 1


def test_bytes_that_are_no_text_do_not_stop_a_stream() -> None:
    tokenizer, draw = ByteTokenizer(), random.Random(0)
    for _ in range(50):
        ids = [draw.choice([65, 66, 0x80, 0xE4, 0xBD, 0xA0, 256, 0xFF]) for _ in range(30)]
        stream, pieces = pieces_of(tokenizer, ids)
        assert "".join(pieces) == stream.text == tokenizer.decode(ids).rstrip("\ufffd")


def test_spaces_between_words_are_kept() -> None:
    stream, pieces = pieces_of(SpacingTokenizer(), [0, 1, 2, 3])
    assert pieces == ["Hello", " world", " of", " words", ""]
    assert stream.text == "Hello world of words"


@pytest.mark.parametrize("stop", [("END",), ("ENDING", "END"), ("D",), ("x END", "NOPE"), ("\n\n", "END")])
def test_a_stream_never_shows_a_part_of_a_stop_text(stop: tuple[str, ...]) -> None:
    text = "E EN. ENE the x END and more"
    stream, pieces = pieces_of(ByteTokenizer(), list(text.encode()), stop)
    cut = min(text.find(s) for s in stop if s in text)
    assert stream.stopped and stream.text == text[:cut] == "".join(pieces)
    for count in range(1, len(pieces)):
        shown = "".join(pieces[:count])
        assert text[:cut].startswith(shown)
        held = text[len(shown) : count]
        assert not held or any(s.startswith(held) for s in stop), "nothing is held back without a reason"


def test_what_only_looked_like_a_stop_text_is_shown_in_the_end() -> None:
    stream, pieces = pieces_of(ByteTokenizer(), list(b"the EN"), ("END",))
    assert pieces[-1] == "EN" and stream.text == "the EN" and not stream.stopped


def test_a_stop_text_of_many_bytes() -> None:
    text = "ja \u7d42\u308f\u308a nein"
    stream, pieces = pieces_of(ByteTokenizer(), list(text.encode()), ("\u308f\u308a",))
    assert stream.text == "ja \u7d42" == "".join(pieces)
