"""Chat templates: the words around the turns of a conversation, and the registry that plug-ins add theirs to."""

from __future__ import annotations

from dataclasses import dataclass

from mmframe import registry
from mmframe.errors import UserError, suggest

# ASCII only in source files: the Chinese system message of the released InternVL models, escaped.
_INTERNVL_SYSTEM = (
    "\u4f60\u662f\u7531\u4e0a\u6d77\u4eba\u5de5\u667a\u80fd\u5b9e\u9a8c\u5ba4\u8054\u5408\u5546\u6c64\u79d1\u6280"
    "\u5f00\u53d1\u7684\u4e66\u751f\u591a\u6a21\u6001\u5927\u6a21\u578b\uff0c\u82f1\u6587\u540d\u53ebInternVL, "
    "\u662f\u4e00\u4e2a\u6709\u7528\u65e0\u5bb3\u7684\u4eba\u5de5\u667a\u80fd\u52a9\u624b\u3002"
)


@dataclass(frozen=True)
class Template:
    """How turns are written. Markers in these texts become single ids; in what a user says they do not.

    Attributes:
        system: default system message; "" for none.
        system_start, system_end: around the system message; not written when the message is empty.
        user_start, user_end: around what the user says.
        answer_start: before an answer; the prompt of a generation ends with it.
        answer_end: marker that ends an answer, supervised; None takes the tokenizer's eos.
        answer_gap: text between an answer and the next turn, not supervised.
        bos: whether the text opens with the tokenizer's bos.
        keep_image_newline: whether a line break that follows <image> is kept.
    """

    system: str = ""
    system_start: str = ""
    system_end: str = ""
    user_start: str = ""
    user_end: str = ""
    answer_start: str = "\n"
    answer_end: str | None = None
    answer_gap: str = ""
    bos: bool = False
    keep_image_newline: bool = True


TemplateName = str
"""Type of an argument that names a template: recipes are checked against the source, before anything is imported."""

TEMPLATES: dict[str, Template] = {}
"""All templates by name; `register_template` adds to it."""


def register_template(name: str, template: Template) -> None:
    """Makes a template usable by its name, in recipes and in the arguments of ChatProcessor.

    A plug-in calls it where it defines its components.

    Args:
        name: What recipes write; a string literal, for they are checked against the source.
        template: The words around the turns.

    Raises:
        UserError: the name is taken.
    """
    if name in TEMPLATES:
        raise UserError(f"two chat templates are called {name!r}; register yours under another name")
    TEMPLATES[name] = template


def get_template(name: str) -> Template:
    """The template of this name.

    Raises:
        UserError: there is none; the message holds the nearest name and all names.
    """
    if name not in TEMPLATES:
        registry.discover()  # a model that is loaded from its files may be the first to need a plug-in
    if name not in TEMPLATES:
        raise UserError(f"template {name!r} does not exist; {suggest(name, sorted(TEMPLATES))}")
    return TEMPLATES[name]


def _chatml(line_break: str, system: str = "", bos: bool = False) -> Template:
    """ChatML, with or without a line break after each <|im_end|>."""
    return Template(
        system=system,
        system_start="<|im_start|>system\n",
        system_end="<|im_end|>" + line_break,
        user_start="<|im_start|>user\n",
        user_end="<|im_end|>" + line_break,
        answer_start="<|im_start|>assistant\n",
        answer_end="<|im_end|>",
        answer_gap=line_break,
        bos=bos,
    )


# The released Mono-InternVL: no line break after <|im_end|>, which is the difference to chatml.
register_template("internlm2-chat", _chatml("", system=_INTERNVL_SYSTEM, bos=True))

# Without a system message of its own: for Qwen2, Qwen3 and whoever else speaks it.
register_template("chatml", _chatml("\n"))

# InternLM2-chat, the text LLM under Mono-InternVL.
register_template("internlm2", _chatml("\n", bos=True))

# SmolLM2-Instruct, with the default message of its own template.
register_template(
    "smollm2", _chatml("\n", system="You are a helpful AI assistant named SmolLM, trained by Hugging Face")
)

# Llama 3: roles between two markers and an empty line.
register_template(
    "llama3",
    Template(
        system_start="<|start_header_id|>system<|end_header_id|>\n\n",
        system_end="<|eot_id|>",
        user_start="<|start_header_id|>user<|end_header_id|>\n\n",
        user_end="<|eot_id|>",
        answer_start="<|start_header_id|>assistant<|end_header_id|>\n\n",
        answer_end="<|eot_id|>",
        bos=True,
    ),
)

# The shortest form, for captions and short questions: image, question, line break, answer, eos.
register_template("plain", Template(keep_image_newline=False))
