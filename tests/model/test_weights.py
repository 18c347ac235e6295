"""The hand-over between stages: strict, with messages that help, and never half a file (P31, P32)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.freezing.delta_tuning import VisualParameters
from mmframe.errors import UserError
from mmframe.loading import load
from mmframe.module import MultimodalModule
from mmframe.weights import load_weights, read_weights, save_weights
from tests.helpers import (
    QKV_FFN,
    all_logits,
    batch,
    differing,
    fit,
    mixed_batch,
    roughen,
    shares,
    snapshot,
    tiny_module,
    tiny_net,
)


def test_saved_weights_come_back_to_the_last_bit(tmp_path: Path) -> None:
    net = tiny_net(QKV_FFN, distinct=True)
    save_weights(net, tmp_path / "deep" / "weights.safetensors", metadata={"model": {"layers": 3}})
    state, metadata = read_weights(tmp_path / "deep" / "weights.safetensors")
    assert metadata == {"model": {"layers": 3}}
    other = tiny_net(QKV_FFN)
    assert load_weights(other, state) == []
    assert differing(snapshot(net), snapshot(other)) == set()


def test_weights_keep_the_dtype_of_the_model(tmp_path: Path) -> None:
    net = tiny_net().bfloat16()
    save_weights(net, tmp_path / "w.safetensors")
    assert {t.dtype for t in load_file(tmp_path / "w.safetensors").values()} == {torch.bfloat16}
    wide = tiny_net()
    load_weights(wide, load_file(tmp_path / "w.safetensors"))
    assert {p.dtype for p in wide.parameters()} == {torch.float32}


# ---- messages


def message(net: torch.nn.Module, state: dict[str, torch.Tensor]) -> str:
    with pytest.raises(UserError) as caught:
        load_weights(net, state)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_missing_names_are_grouped_by_component() -> None:
    net = tiny_net(QKV_FFN)
    state = {name: t for name, t in net.state_dict().items() if ".visual." not in name and "position" not in name}
    text = message(net, state)
    assert "19 missing (9 of ffn, visual, 9 of attention, visual, 1 of patch embedder)" in text
    assert "first backbone.layers.0.ffn.visual.down.weight" in text


def test_a_misspelt_name_shows_the_nearest_one() -> None:
    net = tiny_net()
    state = dict(net.state_dict())
    state["backbone.layers.1.ffn.text.gate_proj.weight"] = state.pop("backbone.layers.1.ffn.text.gate.weight")
    text = message(net, state)
    assert "1 missing (1 of ffn, text), first backbone.layers.1.ffn.text.gate.weight" in text
    assert "did you mean 'backbone.layers.1.ffn.text.gate_proj.weight'?" in text
    assert "1 unexpected" in text and "did you mean 'backbone.layers.1.ffn.text.gate.weight'?" in text


def test_another_shape_shows_both_shapes() -> None:
    net = tiny_net()
    state = dict(net.state_dict()) | {"backbone.norm.weight": torch.ones(7)}
    assert "1 of another shape (1 of final norm), first backbone.norm.weight: (7,) given, (32,) expected" in message(
        net, state
    )


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    net = tiny_net()
    before = snapshot(net)
    state = {name: torch.zeros_like(t) for name, t in net.state_dict().items()}
    del state["backbone.norm.weight"]
    message(net, state)
    assert differing(before, snapshot(net)) == set()


# ---- files


def test_a_missing_file_and_a_damaged_one_are_one_line_each(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; give the weights.safetensors of a finished stage"):
        read_weights(tmp_path / "none.safetensors")
    path = tmp_path / "w.safetensors"
    save_weights(tiny_net(), path)
    whole = path.read_bytes()
    for damaged in (b"", b"hello", whole[:7], whole[:500], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="w.safetensors is (damaged or )?no safetensors file|is damaged"):
            read_weights(path)


def test_a_save_that_is_cut_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(tiny_net(), path)
    before = path.read_bytes()

    def cut_off(number: int) -> None:
        os.truncate(next(tmp_path.glob(".w.safetensors.*")), 1000)
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", cut_off)
    with pytest.raises(OSError, match="No space left"):
        save_weights(tiny_net(QKV_FFN), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written under another name, synced, then renamed; then the folder is synced."""
    path, steps = tmp_path / "w.safetensors", []
    real_sync, real_replace = os.fsync, os.replace

    def sync(number: int) -> None:
        assert path.exists() == ("replace" in steps)
        steps.append("fsync")
        real_sync(number)

    def replace(source: str, target: str) -> None:
        assert not path.exists()
        steps.append("replace")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    save_weights(tiny_net(), path)
    assert steps == ["fsync", "replace", "fsync"] and [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


# ---- init_from


def saved(module: MultimodalModule, path: Path) -> str:
    module.save_weights(path)
    return str(path)


def test_the_next_stage_starts_from_the_weights_before_it(tmp_path: Path) -> None:
    first = tiny_module(QKV_FFN)
    fit(first, [mixed_batch()])
    path = saved(first, tmp_path / "w.safetensors")
    second = tiny_module(QKV_FFN, init_from=path)
    assert differing(snapshot(first.net), snapshot(second.net)) == set()


def test_experts_that_a_dense_checkpoint_lacks_start_as_copies_of_its_text_weights(tmp_path: Path) -> None:
    """Not as copies of what the backbone was made with before the checkpoint was read."""
    dense = tiny_module({})
    roughen(dense.net, seed=42)
    routed = tiny_module(QKV_FFN, init_from=saved(dense, tmp_path / "w.safetensors"))
    weights, source = snapshot(routed.net), snapshot(dense.net)
    assert differing(source, {name: weights[name] for name in source}) == set()
    new = shares(weights, ".visual.")
    assert new == set(weights) - set(source) and new
    for name in new:
        assert torch.equal(weights[name], source[name.replace(".visual.", ".text.")]), name
    given = batch("tttTTT", "tt[i]tTT")
    expected = all_logits(dense.net.eval(), given)
    assert (all_logits(routed.net.eval(), given) - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_attention_experts_can_be_added_to_trained_ffn_experts(tmp_path: Path) -> None:
    """EViP's checkpoint as the start of EViP++: old experts stay, new ones copy their text expert."""
    first = tiny_module({"ffn": "all"})
    fit(first, [mixed_batch()])
    second = tiny_module(QKV_FFN, init_from=saved(first, tmp_path / "w.safetensors"))
    old, new = snapshot(first.net), snapshot(second.net)
    assert differing(old, {name: new[name] for name in old}) == set()
    added = set(new) - set(old)
    assert added and all(torch.equal(new[name], new[name.replace(".visual.", ".text.")]) for name in added)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = saved(tiny_module(QKV_FFN), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="18 unexpected|9 unexpected"):
        tiny_module({"ffn": "all"}, init_from=path)


def test_a_stage_loads_as_a_model_from_its_file_alone(tmp_path: Path) -> None:
    module = tiny_module(QKV_FFN, freezing=VisualParameters(1e-2, 1e-2))
    fit(module, [mixed_batch()])
    module.save_weights(tmp_path / "weights.safetensors")
    loaded = load(tmp_path)
    assert torch.equal(all_logits(loaded.net, mixed_batch()), all_logits(module.net.eval(), mixed_batch()))
    assert not any(p.requires_grad for p in loaded.net.parameters())
    assert loaded.processor.spec == module.processor.spec
    save_file({"x": torch.ones(1)}, str(tmp_path / "bare.safetensors"))
    with pytest.raises(UserError, match="no description of the model"):
        load(tmp_path / "bare.safetensors")
