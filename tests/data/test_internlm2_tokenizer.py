"""InternLM2Tokenizer on a real sentencepiece model, trained here in the manner of the released one."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
import sentencepiece
import torch

from mmframe.batch import IGNORE
from mmframe.errors import UserError
from mmframe.kinds import TokenKind
from mmframe.loading import build
from mmframe.processing import INTERNVL_MARKERS, ChatProcessor, InternLM2Tokenizer
from mmframe.processing.sentencepiece import CHAT_MARKERS
from tests.data.support import (
    CHAT_PLACEHOLDERS,
    embedder,
    fixture_text,
    internlm2_folder,
    random_texts,
    sentencepiece_model,
    write_json,
)

CASES = fixture_text("conversation.json")
ANSWER_HEADER, USER_HEADER = "<|im_start|>assistant\n", "<|im_start|>user\n"


@pytest.fixture(scope="module")
def raw() -> sentencepiece.SentencePieceProcessor:
    """The library by itself."""
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> InternLM2Tokenizer:
    """As Mono-InternVL's folder has it."""
    return InternLM2Tokenizer(str(internlm2_folder(tmp_path_factory.mktemp("internvl"), grown=True)))


def whole(tokenizer: InternLM2Tokenizer, raw: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """Ids as the released tokenizer makes them, in one go: cut at the markers, sentencepiece in between."""
    parts = re.split("(" + "|".join(map(re.escape, tokenizer.specials)) + ")", text)
    return [i for p in parts for i in ([tokenizer.specials[p]] if p in tokenizer.specials else raw.encode(p))]


# ---- markers and their ids


def test_the_markers_of_the_released_models(tmp_path: Path, raw: sentencepiece.SentencePieceProcessor) -> None:
    chat = InternLM2Tokenizer(str(internlm2_folder(tmp_path / "chat")))
    assert chat.vocab_size == len(raw)
    assert (chat.bos_id, chat.eos_id, chat.pad_id) == (1, 2, 2)
    assert chat.special_id("<|im_start|>") == raw.piece_to_id("[UNUSED_TOKEN_146]")
    assert chat.special_id("<|im_end|>") == raw.piece_to_id("[UNUSED_TOKEN_145]")
    internvl = InternLM2Tokenizer(str(internlm2_folder(tmp_path / "internvl", grown=True)))
    assert [internvl.special_id(marker) for marker in INTERNVL_MARKERS] == [len(raw) + n for n in range(9)]
    assert internvl.vocab_size == len(raw) + 9
    with pytest.raises(UserError, match="no special token '<IMG_CONTEXTS>'; did you mean '<IMG_CONTEXT>'"):
        internvl.special_id("<IMG_CONTEXTS>")


def test_a_bare_file_has_the_chat_markers_too(tmp_path: Path) -> None:
    full = InternLM2Tokenizer(str(internlm2_folder(tmp_path / "full")))
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    bare = InternLM2Tokenizer(str(tmp_path / "tokenizer.model"))
    assert bare.specials == full.specials and bare.vocab_size == full.vocab_size


def test_the_files_have_the_last_word_on_a_placeholder(tmp_path: Path) -> None:
    folder = internlm2_folder(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["additional_special_tokens"] = ["<|user|>"]
    place = next(i for i, e in config["added_tokens_decoder"].items() if e["content"] == "<|im_start|>")
    config["added_tokens_decoder"][place]["content"] = "<|user|>"
    write_json(folder / "tokenizer_config.json", config)
    tokenizer = InternLM2Tokenizer(str(folder))
    assert tokenizer.special_id("<|user|>") == int(place) and "<|im_start|>" not in tokenizer.specials


def test_growing_a_base_vocabulary_gives_the_released_ids(tmp_path: Path) -> None:
    base = internlm2_folder(tmp_path / "base")
    made = InternLM2Tokenizer(str(base), add_markers=INTERNVL_MARKERS)
    released = InternLM2Tokenizer(str(internlm2_folder(tmp_path / "internvl", grown=True)))
    assert made.specials == released.specials and made.vocab_size == released.vocab_size
    again = InternLM2Tokenizer(str(tmp_path / "internvl"), add_markers=INTERNVL_MARKERS)
    assert again.specials == released.specials and again.vocab_size == released.vocab_size
    assert build(json.loads(json.dumps(made.spec))).specials == made.specials


@pytest.mark.parametrize("kind", ["base", "internvl", "bare"])
def test_a_saved_folder_makes_the_same_tokenizer(kind: str, tmp_path: Path) -> None:
    folder = internlm2_folder(tmp_path / kind, grown=kind == "internvl")
    if kind == "bare":
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            (folder / name).unlink()
    first = InternLM2Tokenizer(str(folder), add_markers=["<img>", "</img>"])
    (tmp_path / "saved").mkdir()
    first.save(tmp_path / "saved")
    second = InternLM2Tokenizer(str(tmp_path / "saved"))
    assert second.specials == first.specials and second.vocab_size == first.vocab_size
    assert (second.bos_id, second.eos_id, second.pad_id) == (1, 2, 2)
    unchanged = kind == "internvl"
    for file in first.files():
        assert ((tmp_path / "saved" / file.name).read_bytes() == file.read_bytes()) or not unchanged


# ---- text


def test_text_is_what_sentencepiece_makes_of_it(
    grown: InternLM2Tokenizer, raw: sentencepiece.SentencePieceProcessor
) -> None:
    for text in random_texts(200):
        assert grown.encode(text) == raw.encode(text)
        assert grown.encode(text, special=True) == whole(grown, raw, text)
        assert grown.decode(grown.encode(text)) == text


def test_typed_markers_and_typed_placeholders_are_letters(grown: InternLM2Tokenizer) -> None:
    markers = set(grown.specials.values())
    for typed in [*grown.specials, *CHAT_MARKERS]:
        for text in (typed, f"a {typed} b", typed + typed):
            assert not markers & set(grown.encode(text)), text
            assert grown.decode(grown.encode(text)) == text
    end = grown.special_id("<|im_end|>")
    assert grown.encode("[UNUSED_TOKEN_145]", special=True) != [end] == grown.encode("<|im_end|>", special=True)
    free = CHAT_PLACEHOLDERS[0]  # stands for no marker: a word like any other
    assert len(grown.encode(free)) == 1 and grown.decode(grown.encode(free)) == free


def test_decoding_piece_by_piece_keeps_every_space(grown: InternLM2Tokenizer) -> None:
    text = "The quick brown  fox, and then:\n    indented  "
    ids = grown.encode(text)
    assert "".join(grown.decode([i]) for i in ids) == text
    for cut in range(len(ids)):
        assert grown.decode(ids[:cut]) + grown.decode(ids[cut:]) == text
    answer = grown.encode("<|im_start|>assistant\n Yes<|im_end|> No", special=True)
    assert grown.decode(answer) == "assistant\n Yes No"
    assert grown.decode(answer, special=True) == "<|im_start|>assistant\n Yes<|im_end|> No"


def test_ids_that_stand_for_no_text(grown: InternLM2Tokenizer) -> None:
    assert grown.decode([]) == ""
    assert grown.decode([grown.vocab_size, grown.vocab_size + 100, *grown.encode("a")]) == "a"  # a padded vocabulary
    assert grown.decode(torch.tensor(grown.encode("two words"))) == "two words"
    assert "\ufffd" in grown.decode(grown.encode("\U0001f600")[:2])  # half of its bytes


def test_a_space_in_front_is_added_by_no_file(tmp_path: Path) -> None:
    """Llama 2's file puts one before every text; pieces would then differ from the whole."""
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(dummy_prefix=True))
    tokenizer = InternLM2Tokenizer(str(tmp_path))
    for text in ["two words", "  two  words ", *random_texts(50)]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(tokenizer.encode("x" + text)) == "x" + text
    copied = pickle.loads(pickle.dumps(tokenizer))
    assert copied.encode(" two  words") == tokenizer.encode(" two  words")


# ---- pieces and the whole


def conversations() -> dict[str, tuple[list[dict[str, str]], int]]:
    """Conversations of the fixture and their number of images."""
    found = {
        name: (case["conversations"], 0 if case["text_only"] else case["num_image"])
        for name, case in CASES["masking"].items()
        if name not in ("open_user_end", "first_not_human", "truncated_text_only_image", "empty_answer")
    }
    several = "A:\n\n<image>\n\n  B <image> <image>\n\nWhich?"
    found["line breaks at images"] = ([{"from": "human", "value": several}, {"from": "gpt", "value": "B"}], 3)
    words = [("Why?\n\nSay it in two lines.", "Well:\n\n- one\n- two"), ("1234", "\u4f60\u597d, 5.")]
    talk = [{"from": who, "value": v} for turn in words for who, v in zip(("human", "gpt"), turn, strict=True)]
    return found | {"line breaks": (talk, 0)}


@pytest.mark.parametrize("name", sorted(conversations()))
@pytest.mark.parametrize("system", [None, "", "Be brief."])
def test_pieces_are_the_whole_and_labels_the_reference_s(
    name: str, system: str | None, grown: InternLM2Tokenizer, raw: sentencepiece.SentencePieceProcessor
) -> None:
    """Our rows are encoded piece by piece; the reference encodes the whole and counts pieces to find the answers."""
    made = ChatProcessor(grown, "internlm2-chat", image_start="<img>", image_end="</img>", system=system)
    talk, images = conversations()[name]
    sample = made.encode(talk, [torch.zeros(1, 3, 56, 56, dtype=torch.uint8)] * images, embedder(56, 16))
    slot = grown.special_id("<IMG_CONTEXT>")
    ids = torch.where(sample.kinds == TokenKind.IMAGE, slot, sample.ids).tolist()
    text = grown.decode(ids[1:], special=True)
    assert ids == [1, *whole(grown, raw, text)]
    labels = [IGNORE, *sample.labels.tolist()[:-1]]
    assert labels == labels_of_the_reference(text, lambda piece: [1, *whole(grown, raw, piece)])


def labels_of_the_reference(text: str, tokenize) -> list[int]:  # noqa: ANN001
    """reference-behaviour.md, "Training-target masking": lengths of pieces, each with a bos of its own, add up."""
    labels = tokenize(text)
    parts = text.split(ANSWER_HEADER)
    place = 1
    labels[0] = IGNORE

    def mask(count: int) -> None:
        nonlocal place
        labels[place : place + count] = [IGNORE] * count
        place += count

    mask(len(tokenize(parts[0] + ANSWER_HEADER)) - 1)
    for part in parts[1:-1]:
        answer, question = part.split(USER_HEADER)
        place += len(tokenize(answer)) - 1
        mask(len(tokenize(USER_HEADER + question + ANSWER_HEADER)) - 1)
    place += len(tokenize(parts[-1])) - 1
    assert place == len(labels), "the reference would leave the sample out of the loss"
    return labels


@pytest.mark.parametrize("name", sorted(CASES["dialogues"]))
def test_prompts_of_the_reference_in_one_go(
    name: str, grown: InternLM2Tokenizer, raw: sentencepiece.SentencePieceProcessor
) -> None:
    """What stands in the fixture as text, given to sentencepiece in one go and to us turn by turn."""
    case = CASES["dialogues"][name]
    made = ChatProcessor(grown, "internlm2-chat", image_start="<img>", image_end="</img>")
    talk = [
        {"from": who, "value": value}
        for turn in case["turns"]
        for who, value in zip(("human", "gpt"), turn, strict=True)
        if value is not None
    ]
    count = case["prompt"].count("<image>")
    images = [torch.zeros(1, 3, 56, 56, dtype=torch.uint8)] * count
    is_open = talk[-1]["from"] == "human"
    sample = (made.encode_prompt if is_open else made.encode)(talk, images, embedder(56, 16))
    slot = grown.special_id("<IMG_CONTEXT>")
    expected = case["prompt"].replace("<image>", "<img>" + "<IMG_CONTEXT>" * 16 + "</img>")
    ids = torch.where(sample.kinds == TokenKind.IMAGE, slot, sample.ids).tolist()
    assert ids == [1, *whole(grown, raw, expected)]


# ---- what is wrong with files


def test_it_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.model does not exist; path must be a tokenizer\.model or the fol"):
        InternLM2Tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"the folder has tokenizer\.json, which another tokenizer reads"):
        InternLM2Tokenizer(str(tmp_path))
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\n", sentencepiece_model()[:5000]):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(UserError, match=r"tokenizer\.model: not a sentencepiece model") as caught:
            InternLM2Tokenizer(str(tmp_path))
        assert "\n" not in str(caught.value)


def test_side_files_that_make_no_sense_are_named(tmp_path: Path) -> None:
    folder = internlm2_folder(tmp_path)
    good = json.loads((folder / "tokenizer_config.json").read_text())
    for content, message in [
        ("{", r"tokenizer_config\.json: not JSON"),
        ("[]", r"tokenizer_config\.json: must hold an object, not a list"),
        ('{"added_tokens_decoder": {"x": "y"}}', "cannot make sense of its tokenizer_config.json"),
    ]:
        (folder / "tokenizer_config.json").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            InternLM2Tokenizer(str(folder))
    for entry in good["added_tokens_decoder"].values():
        entry["rstrip"] = entry["content"] == "<|im_start|>"
    write_json(folder / "tokenizer_config.json", good)
    with pytest.raises(UserError, match=r"wants the spaces next to <\|im_start\|> stripped"):
        InternLM2Tokenizer(str(folder))
