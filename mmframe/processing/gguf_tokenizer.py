"""The tokenizer inside a GGUF file, as the tokenizer.json and tokenizer_config.json of the official layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers as hf

from mmframe.errors import UserError

# llama.cpp's "smollm" rule splits digits before anything else; the vocabulary has no token of two digits, so plain
# byte-level splitting gives the same ids but for a run of spaces before a digit. transformers does it this way too.
_PLAIN_SPLITTING = ("gpt-2", "smollm")

_CONTROL = 3  # GGUF token type of markers


def tokenizer_json_from_gguf(file: Path) -> str:
    """Text of a tokenizer.json with the vocabulary of a GGUF file: byte-level BPE, split as GPT-2 does.

    Ids equal those of transformers' AutoTokenizer on the same file.

    Raises:
        UserError: the file has no tokenizer, or one of another family; the message names it.
    """
    fields = _fields(file)
    _check_family(file, fields)
    tokens, kinds = _content(file, fields, "tokens"), _content(file, fields, "token_type")
    merges = [tuple(pair.split(" ")) for pair in _content(file, fields, "merges")]
    made = hf.Tokenizer(hf.models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = hf.decoders.ByteLevel()
    made.add_special_tokens(
        [hf.AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == _CONTROL]
    )
    return made.to_str()


def tokenizer_config_from_gguf(file: Path) -> str:
    """Text of a tokenizer_config.json with the markers that open a text, end it and fill it, as far as they are named.

    Raises:
        UserError: the file has no tokenizer.
    """
    fields = _fields(file)
    tokens = _content(file, fields, "tokens")
    named = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "pad_token": "padding_token_id"}
    places = {role: fields.get(f"tokenizer.ggml.{key}") for role, key in named.items()}
    return json.dumps({role: tokens[int(place.contents())] for role, place in places.items() if place}, indent=2)


def _fields(file: Path) -> Any:
    from gguf import GGUFReader  # slow to import

    try:
        return GGUFReader(file).fields
    except (OSError, ValueError) as error:
        raise UserError(f"tokenizer {file}: not a GGUF file ({error})") from error


def _content(file: Path, fields: Any, name: str) -> Any:
    field = fields.get(f"tokenizer.ggml.{name}")
    if field is None:
        raise UserError(f"tokenizer {file}: the file has no tokenizer.ggml.{name}; give a tokenizer.json by itself")
    return field.contents()


def _check_family(file: Path, fields: Any) -> None:
    family = _content(file, fields, "model")
    # Files from before the splitting rule was recorded are read as GPT-2's.
    split = fields["tokenizer.ggml.pre"].contents() if "tokenizer.ggml.pre" in fields else "gpt-2"
    if family != "gpt2" or split not in _PLAIN_SPLITTING:
        raise UserError(
            f"tokenizer {file}: its tokenizer.ggml.model is {family!r} and its tokenizer.ggml.pre {split!r}; only "
            f"byte-level BPE ('gpt2') with {' or '.join(map(repr, _PLAIN_SPLITTING))} can be read from a GGUF file; "
            "give the tokenizer.json of the model by itself"
        )
