"""The released layouts, there and back: recorded logits after the import, every bit after the export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mmframe
from components.backbones.internlm2 import InternLM2
from components.checkpoints.internvl import InternVLChat
from components.patch_embedders.linear import LinearPatchEmbedder
from components.patch_embedders.mono import MonoPatchEmbedder
from components.routers.modality import ModalityRouter
from mmframe.batch import Batch
from mmframe.convert import Import
from mmframe.loading import load
from mmframe.model import MultimodalLM
from mmframe.official import Official
from mmframe.safetensors_file import Entry
from mmframe.weights import save_weights
from tests.checkpoints.support import (
    MODELS,
    REFERENCE,
    check_recorded_logits,
    config_of,
    in_shards,
    official,
    run,
    same_tensors,
    state_of,
    text_llm,
    word_tokenizer,
    write_state,
)
from tests.helpers import HIDDEN, QKV_FFN, all_logits, row, tiny_embedder, tiny_internlm2, tiny_net
from tests.model.test_reference import recorded_rows, rows_of

every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_an_import_gives_the_recorded_logits(name: str, tmp_path: Path) -> None:
    assert run("import", REFERENCE / name, tmp_path / "ours") == 0
    assert [file.name for file in tmp_path.iterdir()] == ["ours"]
    check_recorded_logits(load(tmp_path / "ours").net, name)
    check_recorded_logits(mmframe.from_pretrained(tmp_path / "ours" / "weights.safetensors").net, name)


@every_model
def test_a_model_comes_straight_from_its_official_folder(name: str) -> None:
    model = mmframe.from_pretrained(REFERENCE / name)
    check_recorded_logits(model.net, name)
    assert not model.net.training and not any(p.requires_grad for p in model.net.parameters())


@every_model
def test_an_export_gives_back_every_bit_and_the_config(name: str, tmp_path: Path) -> None:
    assert run("import", REFERENCE / name, tmp_path / "ours") == 0
    assert run("export", tmp_path / "ours", tmp_path / "theirs") == 0
    assert same_tensors(state_of(tmp_path / "theirs"), state_of(REFERENCE / name))
    before, after = config_of(REFERENCE / name), config_of(tmp_path / "theirs")
    for key, value in before.items():
        kept = {inner: after[key][inner] for inner in value} if isinstance(value, dict) else after[key]
        assert kept == value, key
    assert run("import", tmp_path / "theirs", tmp_path / "again") == 0
    again = load_file(tmp_path / "again" / "weights.safetensors")
    assert same_tensors(again, load_file(tmp_path / "ours" / "weights.safetensors"))
    check_recorded_logits(load(tmp_path / "again").net, name)


def test_shards_are_read_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = official(tmp_path / "src")
    in_shards(folder)
    assert run("import", folder, tmp_path / "ours") == 0
    parameters = sum(tensor.numel() for tensor in state_of(folder).values())
    assert f"InternVLChat, {parameters:,} parameters" in capsys.readouterr().out
    check_recorded_logits(load(tmp_path / "ours").net, "mono_v1")
    assert run("export", tmp_path / "ours", tmp_path / "out", "--max-shard-size", "100KB") == 0
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(sum(t.nbytes for t in load_file(file).values()) <= 100_000 for file in files)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in state_of(REFERENCE / "mono_v1").values())
    assert same_tensors(state_of(tmp_path / "out"), state_of(REFERENCE / "mono_v1"))
    check_recorded_logits(mmframe.from_pretrained(tmp_path / "out").net, "mono_v1")


def test_dtype_converts_and_is_kept_otherwise(tmp_path: Path) -> None:
    assert run("import", REFERENCE / "mono_v1", tmp_path / "narrow", "--dtype", "bf16") == 0
    assert {p.dtype for p in load(tmp_path / "narrow").net.parameters()} == {torch.bfloat16}
    assert run("export", tmp_path / "narrow", tmp_path / "out") == 0
    assert {t.dtype for t in state_of(tmp_path / "out").values()} == {torch.bfloat16}
    assert config_of(tmp_path / "out")["torch_dtype"] == "bfloat16"
    assert run("export", tmp_path / "narrow", tmp_path / "wide", "--dtype", "fp32") == 0
    assert {t.dtype for t in state_of(tmp_path / "wide").values()} == {torch.float32}
    model = mmframe.from_pretrained(REFERENCE / "mono_v1", dtype=torch.bfloat16)
    assert {p.dtype for p in model.net.parameters()} == {torch.bfloat16}
    assert same_tensors(model.net.state_dict(), load(tmp_path / "narrow").net.state_dict())


def test_missing_keys_of_a_config_mean_what_the_official_class_means(tmp_path: Path) -> None:
    folder = official(tmp_path / "src")
    config = config_of(folder)
    for key in ("ps_version", "downsample_ratio", "pad2square", "use_thumbnail"):
        del config[key]
    del config["llm_config"]["bias"]  # true in the class: tensors would be missing
    config["llm_config"] |= {"bias": False}
    parts = InternVLChat().parts(config, folder)
    assert parts["patch_embedder"]["init_args"]["shuffle_version"] == "v1"
    assert parts["patch_embedder"]["init_args"]["downsample"] == 0.5


def test_what_the_config_says_reaches_the_components(tmp_path: Path) -> None:
    changes = dict(ps_version="v1", downsample_ratio=0.25, template="chatml", use_thumbnail=False, max_dynamic_patch=7)
    folder = official(tmp_path / "src", **changes, llm__rms_norm_eps=1e-3, llm__rope_theta=77, llm__rope_scaling=None)
    word_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    parts = InternVLChat().parts(config_of(folder), folder)
    llm, embedder = parts["backbone"]["init_args"], parts["patch_embedder"]["init_args"]
    assert (llm["norm_eps"], llm["rope_theta"], llm["rope_scaling"]) == (1e-3, 77, "none")
    assert (embedder["shuffle_version"], embedder["downsample"]) == ("v1", 0.25)
    said = parts["processor"]["init_args"]
    assert (said["template"], said["thumbnail"], said["mean"], said["std"]) == ("chatml", False, [0.5] * 3, [0.25] * 3)
    assert (said["image_start"], said["image_end"]) == ("<img>", "</img>")


def test_the_image_budget_of_the_config_is_known(tmp_path: Path) -> None:
    assert mmframe.from_pretrained(REFERENCE / "mono_v1").max_tiles == 12
    assert mmframe.from_pretrained(official(tmp_path / "one", dynamic_image_size=False)).max_tiles == 1


def test_rotary_buffers_are_the_only_tensors_that_are_passed_over(tmp_path: Path) -> None:
    folder = official(tmp_path / "src")
    buffer = {"language_model.model.layers.0.attention.rotary_emb.inv_freq": torch.ones(4)}
    write_state(folder, state_of(folder) | buffer)
    check_recorded_logits(mmframe.from_pretrained(folder).net, "mono_v1")


# ---- the released size


class Named(Official):
    """A checkpoint of names and shapes alone."""

    def __init__(self, config: dict, entries: dict[str, Entry]) -> None:
        self.name, self.folder, self.config, self.entries = "released", Path("nowhere"), config, entries

    def read(self, name: str) -> torch.Tensor:
        raise AssertionError("nothing is read")


def released_entries() -> dict[str, Entry]:
    """Names and shapes of the released 2B checkpoints, as published."""
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, 1024),
        "vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        "vision_model.embeddings.patch_embedding.bias": (1024,),
        "vision_model.embeddings.position_embedding": (1, 1025, 1024),
        "mlp1.0.weight": (4096,),
        "mlp1.0.bias": (4096,),
        "mlp1.1.weight": (2048, 4096),
        "mlp1.1.bias": (2048,),
        "mlp1.3.weight": (2048, 2048),
        "mlp1.3.bias": (2048,),
        "language_model.model.tok_embeddings.weight": (92553, 2048),
        "language_model.model.norm.weight": (2048,),
        "language_model.output.weight": (92553, 2048),
    }
    for layer in range(24):
        stem = f"language_model.model.layers.{layer}."
        shapes |= {stem + "attention.wqkv.weight": (4096, 2048), stem + "attention.wo.weight": (2048, 2048)}
        shapes |= {stem + f"{norm}_norm.weight": (2048,) for norm in ("attention", "ffn")}
        for ffn in ("feed_forward", "feed_forward_ve"):
            shapes |= {stem + f"{ffn}.{w}.weight": (8192, 2048) for w in ("w1", "w3")}
            shapes[stem + f"{ffn}.w2.weight"] = (2048, 8192)
    return {name: Entry(torch.bfloat16, shape) for name, shape in shapes.items()}


def released_config() -> dict:
    config = config_of(REFERENCE / "mono_v1")
    config["llm_config"] |= dict(
        hidden_size=2048, num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=8, intermediate_size=8192,
        vocab_size=92553,
    )  # fmt: skip
    config["vision_config"] |= dict(hidden_size=1024, image_size=448, patch_size=14)
    return config | {"force_image_size": 448}


def test_the_released_size_has_its_253_tensors_under_the_official_names() -> None:
    entries = released_entries()
    assert len(entries) == 253
    made = Import(Named(released_config(), entries))  # strict: names and shapes
    assert sum(torch.Size(shape).numel() for _, shape in made.entries.values()) == 3_111_355_392
    assert {dtype for dtype, _ in made.entries.values()} == {torch.bfloat16}
    assert sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in made.entries.values()) == 6_222_710_784
    with torch.device("meta"):
        backbone = InternLM2()  # the defaults of ours are the released model
        net = MultimodalLM(backbone, MonoPatchEmbedder(backbone.hidden_size), ModalityRouter())
    own, form = net.state_dict(), InternVLChat()
    written = {link.theirs: tuple(link.to_theirs(*(own[n] for n in link.ours)).shape) for link in form.links(net)}
    assert written == {name: entry.shape for name, entry in entries.items()}
    config = form.config(net, None)
    assert {key: config["llm_config"][key] for key in ("rope_theta", "rms_norm_eps", "bias", "architectures")} == {
        "rope_theta": 1e6, "rms_norm_eps": 1e-5, "bias": False, "architectures": ["InternLM2VEForCausalLM"]
    }  # fmt: skip
    assert config["llm_config"]["rope_scaling"] == {"type": "dynamic", "factor": 2.0}


# ---- models of ours


def test_attention_experts_are_written_under_names_of_our_own(tmp_path: Path) -> None:
    net = tiny_net(QKV_FFN, backbone=tiny_internlm2(), distinct=True)
    parts = {"backbone": net.backbone.spec, "patch_embedder": net.patch_embedder.spec, "router": net.router.spec}
    save_weights(net, tmp_path / "weights.safetensors", {"model": parts | {"processor": None}})
    assert run("export", tmp_path / "weights.safetensors", tmp_path / "out") == 0
    names = set(state_of(tmp_path / "out"))
    assert "language_model.model.layers.0.attention.wqkv_ve.weight" in names
    assert "language_model.model.layers.0.feed_forward_ve.w1.weight" in names
    assert config_of(tmp_path / "out")["llm_config"]["visual_experts_at"] == QKV_FFN
    back = mmframe.from_pretrained(tmp_path / "out").net
    assert same_tensors(back.state_dict(), net.state_dict())
    assert torch.equal(all_logits(back, row("tt[i]tt")), all_logits(net, row("tt[i]tt")))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"patch_embedder": LinearPatchEmbedder}, "LinearPatchEmbedder has no place in the InternVL layout"),
        ({"output_rms": 0.1}, "output_rms=0.1 has no place in the official layout"),
        ({"visual_kinds": ["image", "boundary"]}, "official code sends image tokens alone to visual experts"),
        ({"form": "low_rank", "rank": 4}, "form low_rank has no official names"),
        ({"attention": "image_bidirectional"}, "official code has no attention=image_bidirectional"),
    ],
)
def test_what_the_layout_cannot_express_is_refused(
    changes: dict, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = tiny_internlm2(**{key: changes[key] for key in changes if key == "attention"})
    embedder = tiny_embedder(**{key: changes[key] for key in changes if key == "output_rms"})
    if "patch_embedder" in changes:
        embedder = LinearPatchEmbedder(HIDDEN, image_size=8, patch_size=4)
    router = ModalityRouter(**{key: changes[key] for key in changes if key in ("visual_kinds", "form", "rank")})
    net = MultimodalLM(backbone, embedder, router)
    parts = {"backbone": backbone.spec, "patch_embedder": embedder.spec, "router": router.spec, "processor": None}
    save_weights(net, tmp_path / "weights.safetensors", {"model": parts})
    assert run("export", tmp_path / "weights.safetensors", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("mmframe: error:") and reason in error
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]


def test_an_imported_text_llm_is_the_text_path(tmp_path: Path) -> None:
    folder = text_llm(tmp_path / "llm")
    assert run("import", folder, tmp_path / "ours") == 0
    net = load(tmp_path / "ours").net
    assert net.patch_embedder is None
    logits = all_logits(net, Batch.collate(rows_of("text_only")))
    torch.testing.assert_close(logits, recorded_rows("text_only", "logits"), atol=1e-4, rtol=0)
    assert run("export", tmp_path / "ours", tmp_path / "out") == 0
    assert same_tensors(state_of(tmp_path / "out"), state_of(folder))
