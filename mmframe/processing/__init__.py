"""From conversations to rows of tokens: tokenizers, chat templates, the processor."""

from mmframe.processing.chat import PLACEHOLDER, ChatProcessor
from mmframe.processing.gguf_tokenizer import tokenizer_config_from_gguf, tokenizer_json_from_gguf
from mmframe.processing.sentencepiece import INTERNVL_MARKERS, InternLM2Tokenizer
from mmframe.processing.templates import TEMPLATES, Template, register_template
from mmframe.processing.tokenizer import ByteTokenizer, HFTokenizer, SmolLM2Tokenizer, Tokenizer

__all__ = [
    "INTERNVL_MARKERS",
    "PLACEHOLDER",
    "TEMPLATES",
    "ByteTokenizer",
    "ChatProcessor",
    "HFTokenizer",
    "InternLM2Tokenizer",
    "SmolLM2Tokenizer",
    "Template",
    "Tokenizer",
    "register_template",
    "tokenizer_config_from_gguf",
    "tokenizer_json_from_gguf",
]
