"""`mmframe import --image-tokens`: a text LLM gets the nine tokens that InternVL adds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mmframe
from mmframe.loading import load
from mmframe.processing.sentencepiece import INTERNVL_MARKERS
from tests.checkpoints.support import REFERENCE, config_of, run, state_of, text_llm, word_tokenizer
from tests.data.support import internlm2_folder

ROWS = ("backbone.embedding.weight", "backbone.output.weight")


@pytest.mark.parametrize("words", [512, 500])  # 500: a vocabulary with spare rows
def test_embedding_and_head_grow_by_mean_rows(words: int, tmp_path: Path) -> None:
    folder = text_llm(tmp_path / "llm")
    word_tokenizer(folder, words, template="<|im_start|> bos_token")
    assert run("import", folder, tmp_path / "plain") == 0
    assert run("import", folder, tmp_path / "ours", "--image-tokens") == 0
    plain, grown = (load_file(tmp_path / name / "weights.safetensors") for name in ("plain", "ours"))
    rows = max(512, words + 9)
    for name, tensor in grown.items():
        if name not in ROWS:
            assert torch.equal(tensor, plain[name]), name
            continue
        assert tensor.shape == (rows, 48) and torch.equal(tensor[:words], plain[name][:words])
        mean = plain[name][:words].mean(0)
        torch.testing.assert_close(tensor[words:], mean.expand(rows - words, -1))
    model = load(tmp_path / "ours")
    assert model.net.backbone.vocab_size == rows
    specials = model.processor.tokenizer.specials
    assert [specials[marker] for marker in INTERNVL_MARKERS] == list(range(words, words + 9))
    assert model.processor.start_ids == [words] and model.processor.end_ids == [words + 1]
    assert model.processor.spec["init_args"]["template"] == "internlm2"


def test_the_grown_model_exports_with_its_tokens(tmp_path: Path) -> None:
    folder = text_llm(tmp_path / "llm")
    word_tokenizer(folder)
    assert run("import", folder, tmp_path / "ours", "--image-tokens") == 0
    assert run("export", tmp_path / "ours", tmp_path / "out") == 0
    assert config_of(tmp_path / "out")["vocab_size"] == 521
    assert state_of(tmp_path / "out")["model.tok_embeddings.weight"].shape == (521, 48)
    assert run("import", tmp_path / "out", tmp_path / "again") == 0
    assert load(tmp_path / "again").processor.tokenizer.specials["</box>"] == 520


def test_internlm2_becomes_the_start_of_mono_internvl(tmp_path: Path) -> None:
    """With its own tokenizer.model: ids as InternVL has them, right after the vocabulary."""
    folder = text_llm(internlm2_folder(tmp_path / "llm"), vocab=1000)
    assert run("import", folder, tmp_path / "ours", "--image-tokens") == 0
    model = load(tmp_path / "ours")
    assert model.net.backbone.vocab_size == 1009
    tokenizer = model.processor.tokenizer
    assert [tokenizer.special_id(marker) for marker in INTERNVL_MARKERS] == list(range(1000, 1009))
    assert run("export", tmp_path / "ours", tmp_path / "out") == 0
    again = mmframe.from_pretrained(tmp_path / "out").processor.tokenizer
    text = "<|im_start|>user\n<img></img>Hello<|im_end|>"
    assert again.encode(text, special=True) == tokenizer.encode(text, special=True)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = text_llm(internlm2_folder(tmp_path / "llm"))
    assert run("import", folder, tmp_path / "out") == 2
    assert "the tokenizer has 1,000 tokens, the embedding 512 rows" in capsys.readouterr().err
    assert run("import", folder, tmp_path / "out", "--image-tokens") == 2
    assert "has 1,000 tokens, its embedding 512 rows" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ["no tokenizer", "twice", "sees already"])
def test_what_cannot_take_the_tokens_says_why(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = REFERENCE / "mono_v1"
    if case != "sees already":
        folder = text_llm(tmp_path / "llm")
    if case == "twice":
        word_tokenizer(folder)
        made = json.loads((folder / "tokenizer.json").read_text())
        made["added_tokens"].append(made["added_tokens"][0] | {"id": 512, "content": "<img>"})
        (folder / "tokenizer.json").write_text(json.dumps(made))
    assert run("import", folder, tmp_path / "out", "--image-tokens") == 2
    reason = {
        "no tokenizer": "has no tokenizer that we read",
        "twice": "the tokenizer has <img> already",
        "sees already": "this model sees already",
    }[case]
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
