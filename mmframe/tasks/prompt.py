"""How a question becomes what the user says: template, options, placeholders of pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmframe.data.pictures import Picture
from mmframe.errors import UserError
from mmframe.tasks.fields import as_text, evaluate, is_empty
from mmframe.tasks.spec import Spec

PLACEHOLDER = "<image>"
ONE, EACH = "<image>\n", "Image-{n}: <image>\n"
"""Ahead of the prompt where there is one picture, and for each of several: as InternVL is asked."""


def lettered(options: Any) -> dict[str, str]:
    """Letter -> text of the options, which are a mapping or a list."""
    if isinstance(options, Mapping):
        return {str(name): as_text(text) for name, text in options.items()}
    return {chr(ord("A") + number): as_text(text) for number, text in enumerate(options or ())}


def written_options(spec: Spec, options: Mapping[str, str]) -> str:
    """The options as they stand in the prompt."""
    form = spec.options.get("form", "{letter}. {text}")
    join = spec.options.get("join", "\n")
    return join.join(str(evaluate(form, {"letter": letter, "text": text})) for letter, text in options.items())


def continuations(spec: Spec, options: Mapping[str, str]) -> tuple[str, ...]:
    """Mode likelihood: what is scored of each option."""
    form = spec.options.get("continuation", "{text}")
    return tuple(str(evaluate(form, {"letter": letter, "text": text})) for letter, text in options.items())


def user_text(spec: Spec, scope: Mapping[str, Any], options: Mapping[str, str]) -> str:
    """What the user says, without pictures. A line of the template whose fields are all empty is left out."""
    seen = {**scope, "options": written_options(spec, options)}
    lines = [line for line in spec.prompt.rstrip("\n").split("\n") if not is_empty(line, seen)]
    return "\n".join(as_text(evaluate(line, seen)) for line in lines)


def with_pictures(spec: Spec, text: str, pictures: Sequence[Picture]) -> tuple[str, tuple[Picture, ...]]:
    """A text with a placeholder for each picture, and the pictures in the order of their placeholders.

    Where the text names pictures (`pictures.named`), those stand where they are named, as often as they are; the
    others come first.

    Raises:
        UserError: the text names a picture that there is not, or has placeholders of its own.
    """
    if PLACEHOLDER in text:
        raise UserError(f"its text holds {PLACEHOLDER!r} itself, which stands for a picture: {text[:80]!r}")
    if not pictures:
        return text, ()
    named = spec.pictures.get("named")
    mentioned: list[int] = []
    if named:
        form = re.escape(named).replace(re.escape("{n}"), r"(\d+)")
        mentioned = [int(found) for found in re.findall(form, text)]
        if wrong := [number for number in mentioned if not 0 < number <= len(pictures)]:
            raise UserError(f"its text names picture {wrong[0]}, it has {len(pictures)}")
        text = re.sub(form, PLACEHOLDER, text)
    ahead = [number for number in range(1, len(pictures) + 1) if number not in mentioned]
    one, each = spec.pictures.get("one", ONE), spec.pictures.get("each", EACH)
    form = one if len(pictures) == 1 else each
    head = "".join(form.replace("{n}", str(number)) for number in ahead)
    return head + text, tuple(pictures[number - 1] for number in (*ahead, *mentioned))
