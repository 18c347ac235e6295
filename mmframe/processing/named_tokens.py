"""What stands beside a tokenizer: which markers it has, at which ids, and which of them open and end a text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmframe.errors import UserError

SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files of the official layout that name markers; a folder has all, some or none of them."""

ROLES = ("bos_token", "eos_token", "pad_token")


@dataclass(frozen=True)
class NamedTokens:
    """The markers that the files of a folder name.

    Attributes:
        ids: marker -> id, where a file says the id.
        special: markers that have a role or are listed as special, with or without an id.
        roles: bos_token, eos_token and pad_token -> marker, where a file says so.
        strips: markers that swallow the spaces next to them, or match whole words alone.
    """

    ids: dict[str, int]
    special: tuple[str, ...]
    roles: dict[str, str]
    strips: tuple[str, ...]


def read_named_tokens(folder: Path) -> NamedTokens:
    """Reads what there is of `SIDE_FILES` in a folder.

    Raises:
        UserError: a file is no JSON object, or an id in it is no number; the message names the file.
    """
    config, special, added = (_read(folder / name) for name in SIDE_FILES)
    try:
        decoder = {int(i): entry for i, entry in config.get("added_tokens_decoder", {}).items()}
        ids = {str(marker): int(i) for marker, i in added.items()} | {_text(entry): i for i, entry in decoder.items()}
        roles = {role: _text(facts[role]) for facts in (special, config) for role in ROLES if facts.get(role)}
        listed = [facts[role] for facts in (config, special) for role in (*ROLES, "unk_token") if facts.get(role)]
        listed += [entry for facts in (config, special) for entry in facts.get("additional_special_tokens") or ()]
        strips = [_text(e) for e in decoder.values() if any(e.get(k) for k in ("lstrip", "rstrip", "single_word"))]
        return NamedTokens(ids, tuple(dict.fromkeys(map(_text, listed))), roles, tuple(strips))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"tokenizer {folder}: cannot make sense of its {', '.join(SIDE_FILES)} ({error!r})") from error


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"tokenizer {file}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"tokenizer {file}: must hold an object, not a {type(content).__name__}")
    return content


def _text(entry: str | dict[str, Any]) -> str:
    """A marker's text, which the files write as a string or as {"content": text, ...}."""
    return entry if isinstance(entry, str) else str(entry["content"])
