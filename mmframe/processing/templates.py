"""Chat templates: the words around the turns of a conversation."""

from __future__ import annotations

from dataclasses import dataclass

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


TEMPLATES = {
    # The released Mono-InternVL: no line break after <|im_end|>, which is the difference to chatml.
    "internlm2-chat": Template(
        system=_INTERNVL_SYSTEM,
        system_start="<|im_start|>system\n",
        system_end="<|im_end|>",
        user_start="<|im_start|>user\n",
        user_end="<|im_end|>",
        answer_start="<|im_start|>assistant\n",
        answer_end="<|im_end|>",
        bos=True,
    ),
    # SmolLM2-Instruct, with the default message of its own template.
    "chatml": Template(
        system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
        system_start="<|im_start|>system\n",
        system_end="<|im_end|>\n",
        user_start="<|im_start|>user\n",
        user_end="<|im_end|>\n",
        answer_start="<|im_start|>assistant\n",
        answer_end="<|im_end|>",
        answer_gap="\n",
    ),
    # The shortest form, for captions and short questions: image, question, line break, answer, eos.
    "plain": Template(keep_image_newline=False),
}


def get_template(name: str) -> Template:
    """The template of this name.

    Raises:
        UserError: there is none; the message lists the names.
    """
    if name not in TEMPLATES:
        raise UserError(f"template {name!r} does not exist; {suggest(name, TEMPLATES)}")
    return TEMPLATES[name]
