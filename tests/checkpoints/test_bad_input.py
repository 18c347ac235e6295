"""Bad input: one clear line, exit code 2, and nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import mmframe
from mmframe import safetensors_file
from mmframe.errors import UserError
from mmframe.loading import load
from mmframe.safetensors_file import SafetensorsFile, write_safetensors
from tests.checkpoints.support import (
    REFERENCE,
    check_recorded_logits,
    in_shards,
    official,
    run,
    state_of,
    text_llm,
    write_state,
)
from tests.helpers import all_logits, row

W2 = "language_model.model.layers.1.feed_forward_ve.w2.weight"


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The one line that an import leaves behind."""
    before = sorted(path.name for path in tmp_path.iterdir())
    capsys.readouterr()
    assert run("import", *(words or (tmp_path / "src",)), tmp_path / "out") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("mmframe: error: "), lines
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "something half-written is left"
    return lines[0]


# ---- tensors


@pytest.mark.parametrize("keep", [0, 4, 300, -1])
def test_a_truncated_shard(keep: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = next(iter(in_shards(official(tmp_path / "src"))))
    file = tmp_path / "src" / shard
    file.write_bytes(file.read_bytes()[:keep])
    text = refused(tmp_path, capsys)
    assert f"{shard} is damaged or no safetensors file" in text


def test_a_file_that_is_no_safetensors_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (official(tmp_path / "src") / "model.safetensors").write_text("<html>not found</html>")
    assert "model.safetensors is damaged or no safetensors file" in refused(tmp_path, capsys)


def test_a_shard_that_the_index_names_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    in_shards(official(tmp_path / "src"))
    (tmp_path / "src" / "model-00002-of-00003.safetensors").unlink()
    text = refused(tmp_path, capsys)
    assert "names 1 shards that are not there, first model-00002-of-00003.safetensors" in text


def test_a_tensor_that_is_not_in_its_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, names = next(iter(in_shards(official(tmp_path / "src")).items()))
    state = state_of(tmp_path / "src")
    write_state(tmp_path / "src", {name: state[name] for name in names[1:]}, file)
    assert f"says that {names[0]} is in {file}, but it is not" in refused(tmp_path, capsys)


def test_a_tensor_in_two_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (one, names), (other, more), *_ = in_shards(official(tmp_path / "src")).items()
    state = state_of(tmp_path / "src")
    write_state(tmp_path / "src", {name: state[name] for name in (*more, names[0])}, other)
    assert f"{names[0]} is both in {one} and in {other}" in refused(tmp_path, capsys)


def changed(tmp_path: Path, **tensors: torch.Tensor | None) -> None:
    folder = official(tmp_path / "src")
    state: dict[str, Any] = state_of(folder) | tensors
    write_state(folder, {name: tensor for name, tensor in state.items() if tensor is not None})


def test_a_shard_with_a_wrong_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(tmp_path, **{W2: torch.zeros(48, 79)})
    text = refused(tmp_path, capsys)
    assert f"1 of another shape (1 of ffn, visual), first {W2}: (48, 79) given, (48, 80) expected" in text


def test_missing_and_unexpected_tensors_are_listed_by_component(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    misspelt = W2.replace("w2", "w_2")
    wqkv = "language_model.model.layers.0.attention.wqkv.weight"
    changed(tmp_path, **{W2: None, misspelt: torch.zeros(48, 80), wqkv: None, "mlp1.3.bias": None})
    text = refused(tmp_path, capsys)
    assert "3 missing (1 of attention, text, 1 of ffn, visual, 1 of patch embedder)" in text
    assert "1 unexpected" in text and misspelt in text and f"did you mean '{W2}'?" in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers(
    value: float, dtype: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = torch.zeros(48, 80, dtype=dtype)
    bad[0, :3] = value
    changed(tmp_path, **{W2: bad})
    text = refused(tmp_path, capsys)
    assert f"{W2} holds 3 values that are NaN or infinite (of 3,840)" in text
    with pytest.raises(UserError, match="holds 3 values"):
        mmframe.from_pretrained(tmp_path / "src")


def test_tensors_of_several_types_need_a_dtype_to_compute_in(tmp_path: Path) -> None:
    changed(tmp_path, **{W2: torch.zeros(48, 80, dtype=torch.bfloat16)})
    with pytest.raises(UserError, match="is stored in bfloat16 and float32; say which to compute in"):
        mmframe.from_pretrained(tmp_path / "src")
    assert run("import", tmp_path / "src", tmp_path / "ours") == 0  # kept as stored
    model = mmframe.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert {p.dtype for p in model.net.parameters()} == {torch.float32}


def test_fp16_weights_are_kept_but_do_not_run(tmp_path: Path) -> None:
    folder = official(tmp_path / "src")
    write_state(folder, {name: tensor.half() for name, tensor in state_of(folder).items()})
    with pytest.raises(UserError, match="fp16 gives NaN"):
        all_logits(mmframe.from_pretrained(folder).net, row("ttt"))
    all_logits(mmframe.from_pretrained(folder, dtype=torch.bfloat16).net, row("ttt"))


def test_a_tied_head_that_differs_from_the_embedding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "src"
    folder.mkdir()
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=32)
    config = {"model_type": "llama", "tie_word_embeddings": True, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    stem, weight = "model.layers.0.", "weight"
    shapes = {f"{stem}self_attn.{p}_proj.{weight}": (16, 16) for p in "qkvo"}
    shapes |= {f"{stem}mlp.{p}_proj.{weight}": (24, 16) for p in ("gate", "up")}
    shapes |= {f"{stem}mlp.down_proj.{weight}": (16, 24), "model.norm.weight": (16,)}
    shapes |= {f"{stem}{norm}_layernorm.weight": (16,) for norm in ("input", "post_attention")}
    state = {name: torch.ones(shape) for name, shape in shapes.items()}
    embedding = {"model.embed_tokens.weight": torch.ones(32, 16)}
    write_state(folder, state | embedding | {"lm_head.weight": torch.ones(32, 16)})
    assert mmframe.from_pretrained(folder).net.backbone.output is None  # an equal copy is fine
    write_state(folder, state | embedding | {"lm_head.weight": torch.zeros(32, 16)})
    assert "tie_word_embeddings is true, but lm_head.weight differs from model.embed_tokens" in refused(
        tmp_path, capsys
    )


# ---- the config


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "blip"}, "no checkpoint format fits model_type='blip' (InternVLChatModel)"),
        ({"pad2square": True}, "pad2square=True is not supported"),
        ({"use_llm_lora": 16}, "use_llm_lora=16 is not supported"),
        ({"min_dynamic_patch": 2}, "min_dynamic_patch=2 is not supported"),
        ({"ps_version": "v3"}, "shuffle_version='v3' is not known"),
        ({"select_layer": -2}, "select_layer=-2 is not supported"),
        ({"downsample_ratio": 0.3}, "downsample=0.3"),
        ({"force_image_size": 28}, "force_image_size=28 and vision_config.image_size=56 differ"),
        ({"template": "Hermes-2"}, "template 'Hermes-2' does not exist"),
        ({"template": None}, "template None does not exist"),
        ({"llm__model_type": "gpt2"}, "no backbone reads model_type='gpt2'"),
        ({"llm__hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"llm__rope_scaling": {"type": "yarn", "factor": 2.0}}, "rotary scaling 'yarn' is not supported"),
        ({"llm__hidden_size": None}, "hidden_size=None is missing or no positive whole number"),
        ({"vision__architectures": ["CLIPVisionModel"], "vision__model_type": "clip"}, "'CLIPVisionModel' is not"),
        ({"llm_config": None}, "an InternVL chat model needs llm_config"),
    ],
)
def test_a_config_value_that_cannot_be_honoured(
    changes: dict, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    official(tmp_path / "src", **changes)
    assert reason in refused(tmp_path, capsys)


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_config_that_is_no_json_object(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (official(tmp_path / "src") / "config.json").write_text(text)
    assert "config.json" in refused(tmp_path, capsys)


def test_no_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (official(tmp_path / "src") / "config.json").unlink()
    assert "src: has no config.json" in refused(tmp_path, capsys)


# ---- pickles


class RunsCode:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("owned",)


def test_pickles_are_refused_and_read_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = official(tmp_path / "src")
    torch.save(state_of(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    text = refused(tmp_path, capsys)
    assert "holds 1 pickles (pytorch_model.bin) and no safetensors" in text and "--trust-pickle" in text
    with pytest.raises(UserError, match="pickle"):
        mmframe.from_pretrained(folder)
    assert run("import", folder, tmp_path / "ours", "--trust-pickle") == 0
    check_recorded_logits(load(tmp_path / "ours").net, "mono_v1")
    torch.save({"model": state_of(REFERENCE / "mono_v1"), "step": 3}, folder / "pytorch_model.bin")
    assert "holds more than names and tensors" in refused(tmp_path, capsys, folder, "--trust-pickle")
    monkeypatch.chdir(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(RunsCode()))
    assert "no plain pickle of tensors" in refused(tmp_path, capsys, folder, "--trust-pickle")
    assert not (tmp_path / "owned").exists()


# ---- where to


def test_a_folder_in_use_is_kept_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = text_llm(tmp_path / "llm"), tmp_path / "out"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    assert run("import", source, target) == 2
    assert f"{target}: is not empty" in capsys.readouterr().err
    assert [file.name for file in target.iterdir()] == ["notes.txt"]
    assert run("import", source, target, "--force") == 0
    assert {file.name for file in target.iterdir()} == {"notes.txt", "weights.safetensors"}
    assert run("export", target, target) == 2
    assert run("import", source, tmp_path / "llm" / "config.json") == 2
    assert "is a file" in capsys.readouterr().err


def test_a_forced_export_leaves_no_shard_of_an_earlier_one(tmp_path: Path) -> None:
    assert run("import", text_llm(tmp_path / "llm"), tmp_path / "ours") == 0
    assert run("export", tmp_path / "ours", tmp_path / "out", "--max-shard-size", "50KB") == 0
    assert run("export", tmp_path / "ours", tmp_path / "out", "--force") == 0
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors"}


def test_a_disk_that_is_full_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = text_llm(tmp_path / "llm")

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_file.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run("import", source, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["llm"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["import", "nowhere/at/all", "x"], "no such folder or .gguf file, and no hub id"),
        (["import", "x/weights.safetensors", "y"], "no such file"),
        (["import", "a", "x", "--trust-pickels"], "unknown flag --trust-pickels; did you mean '--trust-pickle'?"),
        (["import", "a"], "DST"),
        (["import", "a", "x", "--dtype", "fp16"], "fp16"),
        (["export", "nowhere", "x"], "does not exist"),
        (["export", "a", "x", "--max-shard-size", "big"], "'big' is no size; write 5GB"),
    ],
)
def test_a_wrong_word(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("command", ["import", "export"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert "SRC" in capsys.readouterr().out


# ---- our own files


def test_a_file_of_ours_is_readable_by_the_library_and_aligned(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = {
        "a": torch.arange(3, dtype=torch.uint8),
        "b": torch.randn(2, 3),
        "c": torch.randn(5).bfloat16(),
        "d": torch.tensor(7, dtype=torch.int64),
        "e": torch.zeros(0, 4),
        "f": torch.randn(4, 4).t(),
        "g": torch.tensor([True, False, True]),
    }
    entries = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    write_safetensors(tmp_path / "x", entries, reversed(tensors.items()), {"said": "so"})
    back = load_file(tmp_path / "x")
    file = SafetensorsFile(tmp_path / "x")
    assert file.metadata == {"format": "pt", "said": "so"}
    for name, tensor in tensors.items():
        for read in (back[name], file.read(name)):
            assert read.dtype == tensor.dtype and read.shape == tensor.shape and torch.equal(read, tensor), name
        assert file.entries[name].start % tensor.element_size() == 0, name


def test_an_import_that_does_not_fit_its_own_description_is_refused(tmp_path: Path) -> None:
    assert run("import", REFERENCE / "mono_v1", tmp_path / "ours") == 0
    file = SafetensorsFile(tmp_path / "ours" / "weights.safetensors")
    state = {name: file.read(name) for name in file.entries if name != "backbone.norm.weight"}
    entries = {name: (tensor.dtype, tensor.shape) for name, tensor in state.items()}
    write_safetensors(file.path, entries, state.items(), {k: v for k, v in file.metadata.items() if k != "format"})
    with pytest.raises(UserError, match="1 missing .1 of final norm., first backbone.norm.weight"):
        load(tmp_path / "ours")
