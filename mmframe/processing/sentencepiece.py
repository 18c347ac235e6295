"""InternLM2Tokenizer: the vocabulary of InternLM2 and of the models grown from it, from a sentencepiece file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, set_min_log_level

from mmframe.errors import UserError
from mmframe.processing.named_tokens import NamedTokens, read_named_tokens
from mmframe.processing.tokenizer import Tokenizer, present, vocabulary_file
from mmframe.registry import register

INTERNVL_MARKERS = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
"""The nine markers that InternVL and Mono-InternVL append to InternLM2: ids 92544 .. 92552, in this order."""

CHAT_MARKERS = {
    "[UNUSED_TOKEN_141]": "<|plugin|>",
    "[UNUSED_TOKEN_142]": "<|interpreter|>",
    "[UNUSED_TOKEN_143]": "<|action_end|>",
    "[UNUSED_TOKEN_144]": "<|action_start|>",
    "[UNUSED_TOKEN_145]": "<|im_end|>",
    "[UNUSED_TOKEN_146]": "<|im_start|>",
}
"""InternLM2's tokenizer.model has placeholders where its chat models have markers: ids 92538 .. 92543."""

# Protocol buffers merge what is appended: normalizer_spec {add_dummy_prefix: false, remove_extra_whitespaces: false}.
_KEEP_SPACES = b"\x1a\x04\x18\x00\x20\x00"


@register("tokenizer")
class InternLM2Tokenizer(Tokenizer):
    """A sentencepiece `tokenizer.model`, as InternLM2, InternVL 1.5 and Mono-InternVL have it.

    Markers and their ids come from added_tokens.json, tokenizer_config.json and special_tokens_map.json in the same
    folder, as far as they are there. Where they say nothing, the placeholders of the file serve as InternLM2's chat
    markers ([UNUSED_TOKEN_145] is <|im_end|>). bos and eos are those of the file (1 and 2), filler is eos.

    Spaces are text like any other: none is put before a text or next to a marker, and none is lost. InternLM2's own
    file says so; for a file that says otherwise (Llama 2's) it is so all the same, lest the pieces of a prompt differ
    from the whole. The released tokenizer puts a space before the words between two markers when it decodes them with
    the markers shown; this one does not.

    The placeholders are ordinary words to sentencepiece: whoever types [UNUSED_TOKEN_145] ends the turn in the released
    tokenizer. Here typed placeholders stay letters.

    Args:
        path: The tokenizer.model, or a folder that holds it.
        add_markers: Special tokens to append after the vocabulary, in this order; those that it has keep their ids.
    """

    toy_args = None  # it needs files

    def __init__(self, path: str, add_markers: Sequence[str] = ()) -> None:
        self.file = vocabulary_file("InternLM2Tokenizer", path, "tokenizer.model")
        self._model = _load(self.file)
        self._pieces = self._model.get_piece_size()
        named = read_named_tokens(self.file.parent)
        if named.strips:
            raise UserError(
                f"tokenizer {self.file.parent}: its tokenizer_config.json wants the spaces next to "
                f"{', '.join(named.strips)} stripped (lstrip, rstrip, single_word); InternLM2Tokenizer does not do that"
            )
        self.specials = self._markers(named)
        self.vocab_size = max(self._pieces, 1 + max(self.specials.values()))
        for marker in (*named.special, *add_markers):
            self._add(marker)
        self._texts: dict[int, str] = {}
        for marker, i in self.specials.items():
            self._texts.setdefault(i, marker)
        self._split_markers = _splitter(self.specials)
        # A placeholder in a text would become the id of its marker; sentencepiece has no switch against it.
        of_markers = {i: self._model.id_to_piece(i) for i in self._texts if i < self._pieces}
        self._split_typed = _splitter([piece for i, piece in of_markers.items() if self._model.encode(piece) == [i]])
        self.bos_id: int | None = self._role(named, "bos_token", self._model.bos_id())
        eos = self._role(named, "eos_token", self._model.eos_id())
        if eos is None:
            raise UserError(f"tokenizer {self.file}: neither it nor the files beside it say which token ends an answer")
        self.eos_id = eos
        self.pad_id = self.specials.get(named.roles.get("pad_token", ""), eos)

    def _markers(self, named: NamedTokens) -> dict[str, int]:
        """Marker -> id, as far as ids are known: control symbols, what the files say, placeholders."""
        model = self._model
        own = [i for i in range(self._pieces) if self._is_control(i) and i not in named.ids.values()]
        found = {model.id_to_piece(i): i for i in own} | named.ids
        for piece, marker in CHAT_MARKERS.items():
            i = model.piece_to_id(piece)
            if model.id_to_piece(i) == piece and all(name == piece for name, at in named.ids.items() if at == i):
                found[marker] = i
        return found

    def _is_control(self, i: int) -> bool:
        return i < self._pieces and (self._model.is_control(i) or self._model.is_unknown(i))

    def _add(self, marker: str) -> None:
        """A marker without an id gets that of the piece of this name, else the next one after the vocabulary."""
        if marker in self.specials:
            return
        i = self._model.piece_to_id(marker)
        if self._model.id_to_piece(i) != marker:
            i, self.vocab_size = self.vocab_size, self.vocab_size + 1
        self.specials[marker] = i

    def _role(self, named: NamedTokens, role: str, own: int) -> int | None:
        return self.specials[named.roles[role]] if role in named.roles else own if own >= 0 else None

    def encode(self, text: str, special: bool = False) -> list[int]:
        ids: list[int] = []
        for place, part in enumerate(self._split_markers.split(text) if special else [text]):
            ids += [self.specials[part]] if place % 2 else self._words(part)
        return ids

    def _words(self, text: str) -> list[int]:
        """Ids of plain text; a typed placeholder is cut in two, so that it is none."""
        ids: list[int] = []
        for place, part in enumerate(self._split_typed.split(text)):
            for piece in (part[:1], part[1:]) if place % 2 else (part,):
                ids += self._model.encode(piece)
        return ids

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        text, words = "", []
        for i in map(int, ids):
            if i in self._texts:
                text += self._model.decode(words) + (self._texts[i] if special else "")
                words = []
            elif i < self._pieces:  # a model's vocabulary may be larger than the tokenizer's: no text there
                words.append(i)
        return text + self._model.decode(words)

    def files(self) -> list[Path]:
        return present(self.file)

    def save(self, folder: Path) -> None:
        super().save(folder)
        if self.specials.items() <= read_named_tokens(folder).ids.items():
            return  # the files name all markers as they are
        config = _json(folder / "tokenizer_config.json", {"tokenizer_class": "InternLM2Tokenizer"})
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False) | {"special": True}
        ordered = sorted(self._texts.items())
        config["added_tokens_decoder"] = {str(i): {"content": marker} | flags for i, marker in ordered}
        config["additional_special_tokens"] = [marker for i, marker in ordered if not self._is_control(i)]
        _write(folder / "tokenizer_config.json", config)
        _write(folder / "added_tokens.json", {marker: i for i, marker in ordered if i >= self._pieces})


def _load(file: Path) -> SentencePieceProcessor:
    set_min_log_level(2)  # it would remark on a piece of InternLM2's at each load; errors are raised, not logged
    model = SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(file.read_bytes() + _KEEP_SPACES)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"tokenizer {file}: not a sentencepiece model ({error})") from error
    return model


def _splitter(texts: Iterable[str]) -> re.Pattern[str]:
    """`split` gives what stands between the texts, and in every second place one of them; the longest one matches."""
    either = "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))
    return re.compile(f"({either})") if either else re.compile("(?!)()")  # without texts: matches nowhere


def _json(file: Path, default: dict[str, Any]) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else default


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
