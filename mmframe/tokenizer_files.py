"""The small text files beside official weights: which tokenizer and which chat template they make."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mmframe.official import TEXT_FILES, read_json
from mmframe.processing.templates import TEMPLATES
from mmframe.processing.tokenizer import HFTokenizer
from mmframe.registry import place


def tokenizer_spec(folder: Path, sentencepiece: bool = False) -> dict[str, Any] | None:
    """The tokenizer that an official folder's files make, or None where it has none that we read.

    Args:
        folder: Holds the files.
        sentencepiece: Whether a tokenizer.model is InternLM2's; other families use theirs in other ways.
    """
    if sentencepiece and (folder / "tokenizer.model").is_file():
        from mmframe.processing.sentencepiece import InternLM2Tokenizer

        return {"class_path": place(InternLM2Tokenizer), "init_args": {"path": str(folder.absolute())}}
    if (folder / "tokenizer.json").is_file():
        return {"class_path": place(HFTokenizer), "init_args": {"path": str(folder.absolute())}}
    return None


def chat_template(folder: Path) -> str:
    """Name of the template of ours that a text LLM's own chat template says; ``plain`` where it has none we know.

    A default system message is not taken over (SmolLM2's is): give yours.
    """
    text = ""
    if (folder / "chat_template.jinja").is_file():
        text = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    elif (folder / "tokenizer_config.json").is_file():
        said = read_json(folder / "tokenizer_config.json").get("chat_template") or ""
        text = said if isinstance(said, str) else " ".join(item.get("template", "") for item in said)
    if TEMPLATES["smollm2"].system in text:
        return "smollm2"
    if "<|im_start|>" in text:
        return "internlm2" if "bos_token" in text and "internlm2" in TEMPLATES else "chatml"
    return "llama3" if "<|start_header_id|>" in text else "plain"


def copy_text_files(source: Path, target: Path) -> None:
    """The tokenizer's and other small files of a folder, where it has them."""
    for name in TEXT_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
