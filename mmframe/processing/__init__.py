"""From conversations to rows of tokens: tokenizers, chat templates, the processor."""

from mmframe.processing.chat import PLACEHOLDER, ChatProcessor
from mmframe.processing.templates import TEMPLATES, Template
from mmframe.processing.tokenizer import ByteTokenizer, HFTokenizer, SmolLM2Tokenizer, Tokenizer

__all__ = [
    "PLACEHOLDER",
    "TEMPLATES",
    "ByteTokenizer",
    "ChatProcessor",
    "HFTokenizer",
    "SmolLM2Tokenizer",
    "Template",
    "Tokenizer",
]
