"""Shared by the data tests: a patch embedder that only counts, tokenizers and their files, small JSONL sets."""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image

from mmframe.processing import INTERNVL_MARKERS, ByteTokenizer, ChatProcessor, Tokenizer
from mmframe.processing.sentencepiece import CHAT_MARKERS
from mmframe.tile_tokens import TileGeometry

FIXTURES = Path(__file__).parents[1] / "fixtures" / "reference"


def embedder(image_size: int = 16, tokens: int = 4) -> Any:
    """Says how many slots a tile needs, and nothing else."""
    return TileGeometry.plain(image_size, 1, tokens)


def processor(template: str = "plain", **options: Any) -> ChatProcessor:
    return ChatProcessor(ByteTokenizer(), template, **options)


def fixture_text(name: str) -> Any:
    return json.loads((FIXTURES / name).read_text(encoding="utf-8"))


class FixtureTokenizer(Tokenizer):
    """The toy tokenizer with which the reference's prompts were recorded."""

    def __init__(self) -> None:
        spec = importlib.util.spec_from_file_location("toy_tokenizer", FIXTURES / "toy_tokenizer.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.toy = module.ToyTokenizer()
        self.specials = dict(module.SPECIALS)
        self.vocab_size, self.bos_id, self.eos_id, self.pad_id = 512, 1, 2, 2

    def encode(self, text: str, special: bool = False) -> list[int]:
        return self.toy.encode(text)[1:] if special else [16 + byte for byte in text.encode()]

    def decode(self, ids: Any, special: bool = False) -> str:
        return self.toy.decode(ids, skip_special_tokens=not special)


CHAT_PLACEHOLDERS = [f"[UNUSED_TOKEN_{n}]" for n in range(139, 147)]


@functools.cache
def sentencepiece_model(dummy_prefix: bool = False, placeholders: bool = True) -> bytes:
    """A small tokenizer.model made as InternLM2's is: BPE with bytes, no dummy prefix, spaces kept, placeholders.

    Line breaks are words of their own, as there, and merge with one another; the text is this project's README.
    """
    import sentencepiece

    root = Path(__file__).parents[2]
    lines = [(root / name).read_text(encoding="utf-8") for name in ("README.md", "LICENSE", "CONTRIBUTING.md")]
    lines += [fixture_text("conversation.json")["template"]["system_message"], "user assistant system"]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in lines for line in text.splitlines() if line.strip()),
        model_writer=written,
        model_type="bpe",
        vocab_size=1000,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=dummy_prefix,
        user_defined_symbols=["\n", "\n\n", *(CHAT_PLACEHOLDERS if placeholders else [])],
        num_threads=1,
        minloglevel=2,
    )
    return written.getvalue()


def internlm2_folder(folder: Path, grown: bool = False) -> Path:
    """A tokenizer.model and the files beside it, as InternLM2-chat has them, or grown as InternVL has them."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2}
    ids |= {marker: model.piece_to_id(piece) for piece, marker in CHAT_MARKERS.items()}
    added = {marker: len(model) + n for n, marker in enumerate(INTERNVL_MARKERS)} if grown else {}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "added_tokens_decoder": {str(i): {"content": marker, **flags} for marker, i in (ids | added).items()},
        "additional_special_tokens": [*CHAT_MARKERS.values(), *added],
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "InternLM2Tokenizer",
    }
    special = {role: {"content": config[role], **flags} for role in ("bos_token", "eos_token", "pad_token")}
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)
    if grown:
        write_json(folder / "added_tokens.json", added)
    return folder


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


@functools.cache
def bpe_json() -> str:
    """A small tokenizer.json of byte-level BPE with ChatML's markers."""
    import tokenizers as hf

    made = hf.Tokenizer(hf.models.BPE())
    made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator((Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split("\n"), trainer)
    return made.to_str()


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of letters, digits, spaces, line breaks, accents, Chinese, emoji and parts of markers."""
    draw = random.Random(seed)
    alphabet = "abe 1\n\t.,'<|>_/[]\u00e9\u00df\u4f60\U0001f600ZX-"
    return ["".join(draw.choices(alphabet, k=draw.randint(1, 40))) for _ in range(count)]


def picture(size: tuple[int, int] = (20, 20), colour: tuple[int, int, int] = (200, 30, 60)) -> Image.Image:
    return Image.new("RGB", size, colour)


def write_set(folder: Path, name: str = "train", records: int = 7, questions: int = 5) -> Path:
    """A JSONL file of pictures with questions, plus one conversation and one text-only record."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for r in range(records):
        picture(colour=(30 * r % 256, 90, 200)).save(folder / f"{name}-{r}.png")
        asked = [[f"q{q}?", ("yes", "no", "red", "blue")[(q + r) % 4]] for q in range(questions)]
        lines.append({"id": f"p{r}", "image": f"{name}-{r}.png", "questions": asked})
    talk = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a square"}]
    lines.append({"id": "talk", "image": [f"{name}-0.png"], "conversations": talk})
    text = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    lines.append({"id": "text", "conversations": text})
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
