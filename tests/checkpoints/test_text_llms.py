"""Text LLMs as Hugging Face writes them: the logits of transformers, whatever the config says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mmframe
from mmframe.batch import Sample
from mmframe.errors import UserError
from mmframe.loading import load
from mmframe.processing import ChatProcessor, HFTokenizer
from tests.checkpoints.support import config_of, run, same_tensors, state_of, text_llm, word_tokenizer
from tests.helpers import all_logits

SIZES = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=64,
    max_position_embeddings=32,
    initializer_range=0.4,
)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", dict(rms_norm_eps=1e-2)),
    "llama_tied": ("Llama", dict(tie_word_embeddings=True)),
    "llama_bias_head_dim": ("Llama", dict(attention_bias=True, head_dim=12)),
    "llama_linear": ("Llama", dict(rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=500.0))),
    "llama3": (
        "Llama",
        dict(
            rope_parameters=dict(
                rope_type="llama3",
                factor=8.0,
                rope_theta=100.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=16,
            )
        ),
    ),
    "persimmon": ("Persimmon", dict(qk_layernorm=True, layer_norm_eps=1e-2)),
    "gemma": (
        "Gemma4Unified",
        dict(
            head_dim=8,
            global_head_dim=16,
            num_global_key_value_heads=1,
            attention_k_eq_v=True,
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=5,
            final_logit_softcapping=10.0,
        ),
    ),
    "qwen2": ("Qwen2", dict()),
    "qwen2_tied": ("Qwen2", dict(tie_word_embeddings=True, use_sliding_window=False)),
    "qwen3": ("Qwen3", dict(head_dim=12)),
    "qwen3_tied": ("Qwen3", dict(head_dim=8, tie_word_embeddings=True, attention_bias=True)),
}


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


def saved(transformers: Any, name: str, folder: Path) -> Any:
    """A random model of transformers, saved; its biases and norms are random too."""
    family, changes = CASES[name]
    text = "Text" if family == "Gemma4Unified" else ""
    config = getattr(transformers, f"{family}{text}Config")(**(SIZES | changes))
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter) if "norm" in key else torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name: str, transformers: Any, tmp_path: Path) -> None:
    theirs = saved(transformers, name, tmp_path / "src")
    ids = torch.randint(0, 64, (1, 24), generator=torch.Generator().manual_seed(1))
    expected = theirs(ids).logits[0]
    assert float(expected.std()) > 0.1
    ours = mmframe.from_pretrained(tmp_path / "src").net
    torch.testing.assert_close(all_logits(ours, Sample.from_ids(ids[0])), expected, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama3", "qwen2_tied", "qwen3", "persimmon", "gemma"])
def test_an_export_is_read_by_transformers_and_is_bit_equal(name: str, transformers: Any, tmp_path: Path) -> None:
    theirs = saved(transformers, name, tmp_path / "src")
    assert run("import", tmp_path / "src", tmp_path / "ours") == 0
    assert run("export", tmp_path / "ours", tmp_path / "out") == 0
    assert same_tensors(state_of(tmp_path / "src"), state_of(tmp_path / "out"))
    before, after = config_of(tmp_path / "src"), config_of(tmp_path / "out")
    same = {key: before[key] for key in before if key not in ("head_dim", "attention_bias")}
    assert {key: after[key] for key in same} == same
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(20)[None]
    assert torch.equal(back(ids).logits, theirs(ids).logits)


def test_a_config_made_from_the_parts_alone_is_read_by_transformers(transformers: Any, tmp_path: Path) -> None:
    """A model of ours that never had an official config."""
    from components.backbones.llama import Llama
    from components.routers.modality import SharedRouter
    from mmframe.model import MultimodalLM
    from mmframe.weights import save_weights
    from tests.helpers import roughen

    options = dict(rope_scaling="linear", rope_factor=2.0, tied_head=False, norm_eps=1e-2, rope_theta=77.0)
    backbone = Llama(hidden_size=32, num_layers=2, num_heads=4, kv_heads=2, vocab_size=64, **options)  # type: ignore
    roughen(backbone)
    net = MultimodalLM(backbone, None, SharedRouter())
    parts = {"backbone": backbone.spec, "patch_embedder": None, "router": None, "processor": None}
    save_weights(net, tmp_path / "weights.safetensors", {"model": parts})
    assert run("export", tmp_path / "weights.safetensors", tmp_path / "out") == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(20)
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    torch.testing.assert_close(all_logits(net, Sample.from_ids(ids)), expected, atol=1e-4, rtol=0)


# ---- the processor


@pytest.mark.parametrize(
    ("said", "template"),
    [
        ("{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}", "internlm2"),
        ("{% for m in messages %}<|im_start|>{{ m.role }}", "chatml"),
        ("<|im_start|>system You are a helpful AI assistant named SmolLM, trained by Hugging Face", "smollm2"),
        ("", "plain"),
    ],
)
def test_the_processor_follows_the_files_beside_the_weights(said: str, template: str, tmp_path: Path) -> None:
    folder = text_llm(tmp_path / "llm")
    word_tokenizer(folder, template=said)
    assert run("import", folder, tmp_path / "ours") == 0
    (tmp_path / "ours").rename(tmp_path / "moved")  # the path of the tokenizer is relative to the weights
    for model in (
        mmframe.from_pretrained(folder),
        load(tmp_path / "moved"),
        load(tmp_path / "moved/weights.safetensors"),
    ):
        assert isinstance(model.processor, ChatProcessor) and isinstance(model.processor.tokenizer, HFTokenizer)
        assert model.processor.spec["init_args"]["template"] == template
        assert model.processor.tokenizer.encode("w3 w5") == [3, 5]
        assert model.processor.tokenizer.eos_id == 509


def test_without_a_tokenizer_the_weights_come_and_chat_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("import", text_llm(tmp_path / "llm"), tmp_path / "ours") == 0
    assert "warning:" in (said := capsys.readouterr().err) and "has no tokenizer that we read" in said
    model = load(tmp_path / "ours")
    with pytest.raises(UserError, match="came without a tokenizer"):
        _ = model.processor


def test_the_tokenizer_travels_with_import_and_export(tmp_path: Path) -> None:
    folder = text_llm(tmp_path / "llm")
    word_tokenizer(folder, template="<|im_start|>")
    (folder / "generation_config.json").write_text('{"eos_token_id": 509}')
    assert run("import", folder, tmp_path / "ours") == 0
    assert run("export", tmp_path / "ours", tmp_path / "out") == 0
    for name in ("tokenizer_config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((folder / name).read_text())
    ids = [mmframe.from_pretrained(f).processor.tokenizer.encode("<s>w7 w9", special=True) for f in
           (folder, tmp_path / "out")]  # fmt: skip
    assert ids[0] == ids[1]
    config = config_of(tmp_path / "out")
    assert (config["bos_token_id"], config["eos_token_id"]) == (508, 509)
