"""Prompts for pictures that come with a caption alone."""

from __future__ import annotations

from mmframe.errors import UserError, suggest

PROMPT_SETS: dict[str, tuple[str, ...]] = {
    "none": ("",),
    "describe": (
        "Describe the picture.",
        "What does this picture show?",
        "Write a caption for this picture.",
        "What can be seen here?",
        "Say in a few words what is in the image.",
        "Give a short description of the image.",
        "Please caption the image.",
        "What is this a picture of?",
    ),
    "read": (
        "Read the text in the picture.",
        "What is written here?",
        "Transcribe all text of the image.",
        "Which text does the image contain?",
    ),
}
"""Named sets; `none` learns the caption right after the picture, as pre-training on noisy pairs does."""


def prompts_named(given: str | list[str]) -> tuple[str, ...]:
    """The prompts of a set's name, or the texts as given.

    Raises:
        UserError: no set has this name, or the list is empty.
    """
    if isinstance(given, str):
        if given not in PROMPT_SETS:
            raise UserError(f"data: prompts={given!r} is no set of prompts; {suggest(given, PROMPT_SETS)}, or a list")
        return PROMPT_SETS[given]
    if not given:
        raise UserError("data: prompts is an empty list; give at least one text, or the set `none`")
    return tuple(text.strip() for text in given)
