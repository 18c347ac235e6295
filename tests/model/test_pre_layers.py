"""New layers in front of the pretrained ones: they come to a checkpoint that has none, train, and are handed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from components.freezing.delta_tuning import Everything
from components.freezing.pre_layers import PreLayers
from components.routers.modality import ModalityRouter
from mmframe.contracts import FreezingPolicy
from mmframe.convert import export_checkpoint
from mmframe.errors import UserError
from mmframe.loading import load
from mmframe.module import MultimodalModule
from mmframe.optim import AdamWSchedule
from mmframe.processing import ByteTokenizer, ChatProcessor
from mmframe.weights import read_weights, save_weights
from tests.helpers import all_logits, batch, differing, fit, shares, snapshot, tiny_embedder, tiny_llama, tiny_module


def module(init_from: Path | None = None, freezing: FreezingPolicy | None = None, **options: Any) -> MultimodalModule:
    torch.manual_seed(5)
    return MultimodalModule(
        backbone=tiny_llama(**options),
        patch_embedder=tiny_embedder(),
        router=ModalityRouter(),
        freezing=freezing or PreLayers(lr=1e-2, embedder_lr=1e-2),
        processor=ChatProcessor(ByteTokenizer()),
        optim=AdamWSchedule(warmup_steps=1, schedule="constant"),
        init_from=None if init_from is None else str(init_from),
        expert_backend="torch",
    )


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A stage without such layers."""
    tiny_module().save_weights(tmp_path / "plain.safetensors")
    return tmp_path / "plain.safetensors"


def test_they_come_to_a_checkpoint_without_them_and_train(plain: Path, capsys: pytest.CaptureFixture) -> None:
    made = module(plain, pre_layers=2)
    assert "the 18 tensors of the layers in front are new" in capsys.readouterr().out
    given = batch("t[i]tTT", "tTT")
    made.eval()
    assert torch.equal(all_logits(made.net, given), all_logits(tiny_module(init_from=str(plain)).net.eval(), given))
    before = snapshot(made.net)
    fit(made, [batch("t[i]tTT", "tTT", seed=n) for n in range(2)])
    changed = differing(before, snapshot(made.net))
    assert changed == shares(before, "pre_layers.") | shares(before, "patch_embedder.")
    rows = {row.component: row.group for row in made.freezing_report.rows}
    assert rows["pre-layers, attention"] == rows["pre-layers, ffn"] == rows["pre-layers, norms"] == "pre_layers"
    assert rows["attention, text"] is None


def test_heads_for_rows_and_columns_come_and_train_likewise(plain: Path, capsys: pytest.CaptureFixture) -> None:
    """NEO's pre-training: layers in front, these heads in all layers, and the patch embedder."""
    made = module(plain, PreLayers(1e-2, 1e-2, native_lr=1e-2), pre_layers=1, positions="native")
    said = capsys.readouterr().out
    assert "the 11 tensors of the layers in front are new" in said
    assert "the 6 tensors of the heads for rows and columns are new" in said
    before = snapshot(made.net)
    fit(made, [batch("t[i]tTT", "tTT", seed=n) for n in range(2)])
    changed = differing(before, snapshot(made.net))
    assert changed == {name for name in before if "pre_layers" in name or "_hw" in name or "patch_emb" in name}


def test_they_are_handed_on(plain: Path, tmp_path: Path) -> None:
    first = module(plain, pre_layers=1, pre_layers_init="random")
    first.save_weights(tmp_path / "weights.safetensors")
    given = batch("t[i]tTT")
    loaded = load(tmp_path / "weights.safetensors").net
    again = module(tmp_path / "weights.safetensors", Everything(1e-4, 1e-3, 1e-3), pre_layers=1)
    for net in (loaded, again.net.eval()):
        assert torch.equal(all_logits(net, given), all_logits(first.net.eval(), given))
    assert again.freezing_report.group_of["backbone.pre_layers.0.ffn.text.up.weight"] == "text"


def test_half_of_them_or_too_many_are_an_error(plain: Path, tmp_path: Path) -> None:
    module(plain, pre_layers=1).save_weights(tmp_path / "one.safetensors")
    with pytest.raises(UserError, match="9 missing.*first backbone.pre_layers.1"):
        module(tmp_path / "one.safetensors", pre_layers=2)
    with pytest.raises(UserError, match="9 unexpected.*first backbone.pre_layers.0"):
        module(tmp_path / "one.safetensors", Everything(1e-4, 1e-3, 1e-3))


def test_the_policy_says_what_it_misses(plain: Path) -> None:
    with pytest.raises(UserError, match="backbone.pre_layers.*matches no parameter"):
        module(plain)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"pre_layers": 1}, "pre_layers=1"),
        ({"positions": "native"}, "positions=native"),
        ({"attention": "prefix", "positions": "shared"}, "attention=prefix, positions=shared"),
    ],
)
def test_official_layouts_refuse_what_they_cannot_express(
    options: dict[str, Any], named: str, plain: Path, tmp_path: Path
) -> None:
    made = module(plain, Everything(1e-4, 1e-3, 1e-3), **options)
    made.save_weights(tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=f"official code has no {named}"):
        export_checkpoint(tmp_path / "weights.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_without_them_are_not_a_model_with_them(plain: Path, tmp_path: Path) -> None:
    """Only init_from adds them: a file that says it has them and has not is damaged."""
    state, metadata = read_weights(plain)
    metadata["model"]["backbone"]["init_args"]["pre_layers"] = 1
    net = tiny_module().net
    save_weights(net, tmp_path / "weights.safetensors", metadata)
    assert set(state) == set(net.state_dict())
    with pytest.raises(UserError, match="9 missing"):
        load(tmp_path / "weights.safetensors")
