"""P23: the released Mono-InternVL (v1) code and ours agree on a tiny random checkpoint of the official layout.

tests/fixtures/reference/ holds inputs and outputs of the released code (fp32, CPU). Tolerances separate rounding
(noise 8e-6) from the smallest real difference (LayerNorm eps: 1.3e-4).
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from components.backbones.internlm2 import InternLM2
from components.patch_embedders.mono import MonoPatchEmbedder
from components.routers.modality import ModalityRouter
from mmframe.batch import IGNORE, Batch, Sample
from mmframe.errors import UserError
from mmframe.generation import generate
from mmframe.kinds import TokenKind
from mmframe.model import MultimodalLM
from mmframe.objectives import NextToken
from tests.helpers import all_hidden, all_logits, load_official, loss_and_gradients, official_links

FOLDER = Path(__file__).parents[1] / "fixtures" / "reference"
SLOT, IMAGE_START, IMAGE_END = 500, 498, 499
ATOL = 1e-4


@functools.cache
def io() -> dict[str, Tensor]:
    return load_file(FOLDER / "mono_v1_io.safetensors")


def recorded(case: str, name: str) -> Tensor:
    return io()[f"{case}/{name}"]


def official_state() -> dict[str, Tensor]:
    return load_file(FOLDER / "mono_v1" / "model.safetensors")


def tiny_mono(shuffle_version: str = "v2", **rope: Any) -> MultimodalLM:
    """The fixture's checkpoint in our model, every tensor of it, strictly."""
    config = json.loads((FOLDER / "mono_v1" / "config.json").read_text()) | {"ps_version": shuffle_version}
    backbone = InternLM2(**(InternLM2.from_hf_config(config["llm_config"]) | rope))
    embedder = MonoPatchEmbedder(**MonoPatchEmbedder.from_hf_config(config))
    net = MultimodalLM(backbone, embedder, ModalityRouter({"ffn": "all"}), expert_backend="torch")
    load_official(net, official_state())
    return net.eval()


def rows_of(case: str) -> list[Sample]:
    """A recorded case as rows without padding; the tiles go to the rows by their number of slots."""
    data = {name.split("/")[1]: tensor for name, tensor in io().items() if name.startswith(f"{case}/")}
    tiles = io()["tiles"][data["tile_index"]] if "tile_index" in data else torch.zeros(0, 3, 56, 56)
    if "image_flags" in data:
        tiles = tiles[data["image_flags"].flatten() == 1]
    rows, used = [], 0
    for r, ids in enumerate(data["input_ids"]):
        keep = data["attention_mask"][r].bool() if "attention_mask" in data else torch.ones_like(ids, dtype=torch.bool)
        labels = data["labels"][r] if "labels" in data else torch.full_like(ids, IGNORE)
        rows.append(row_of(ids[keep], labels[keep], f"{case}/{r}"))
        count = -(-int((rows[-1].kinds == TokenKind.IMAGE).sum()) // 16)
        rows[-1].tiles, used = tiles[used : used + count], used + count
    assert used == len(tiles)
    return rows


def row_of(ids: Tensor, labels: Tensor | None = None, key: str = "") -> Sample:
    """Official labels stand at the token itself; ours at the place that predicts it."""
    kinds = torch.where(ids == SLOT, TokenKind.IMAGE, TokenKind.TEXT)
    kinds[(ids == IMAGE_START) | (ids == IMAGE_END)] = TokenKind.BOUNDARY
    next_labels = None if labels is None else torch.cat([labels[1:], torch.tensor([IGNORE])])
    return Sample.from_ids(ids, kinds=kinds, labels=next_labels, key=key)


def recorded_rows(case: str, name: str) -> Tensor:
    """A recorded [B, L, ...] tensor where there is no padding, rows concatenated."""
    values = recorded(case, name)
    mask = io().get(f"{case}/attention_mask")
    return values.flatten(0, 1) if mask is None else values[mask.bool()]


def close(ours: Tensor, theirs: Tensor, atol: float = ATOL) -> None:
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


CASES = ["text_only", "one_image", "two_tiles", "two_images_flagged"]
PADDED = ["batch2_leftpad", "batch2_leftpad_pos", "batch2_rightpad"]


@pytest.mark.parametrize("case", CASES + PADDED)
def test_logits(case: str) -> None:
    close(all_logits(tiny_mono(), Batch.collate(rows_of(case))), recorded_rows(case, "logits"))


def check_one_image_logits() -> None:
    """Used by the planted faults too."""
    test_logits("one_image")


@pytest.mark.parametrize("case", ["text_only", "one_image"])
def test_hidden_states_of_every_layer(case: str) -> None:
    net, batch = tiny_mono(), Batch.collate(rows_of(case))
    plan = net.router.plan(batch.kinds)
    seen: list[Tensor] = []
    for layer in net.backbone.layers:  # type: ignore[union-attr]
        layer.register_forward_hook(lambda module, args, output: seen.append(plan.unsort(output)))
    last = net.backbone.norm(all_hidden(net, batch))  # type: ignore[operator]
    ours = torch.stack([net.embed(batch).detach(), *seen[:-1], last])
    close(ours, recorded(case, "hidden_states")[:, 0])
    close(seen[-1], all_hidden(net, batch), atol=0.0)


@pytest.mark.parametrize("case", ["text_only", "one_image", "batch2_rightpad"])
def test_loss(case: str) -> None:
    total, weight = NextToken()(tiny_mono(), Batch.collate(rows_of(case)))
    close(total / weight, recorded(case, "loss"))


def test_loss_weighted_by_the_length_of_the_answers() -> None:
    """`square` of the released code: the recorded weights, 1 / sqrt(6) and 1 / sqrt(4), are ours."""
    batch = Batch.collate(rows_of("batch2_loss_weight"))
    total, weight = NextToken("sqrt")(tiny_mono(), batch)
    close(total / weight, recorded("batch2_loss_weight", "loss"))
    weights = recorded("batch2_loss_weight", "loss_weight")
    close(batch.supervised_counts.rsqrt(), weights[weights > 0])


def test_loss_of_a_collated_training_batch() -> None:
    """A two-tile sample and a text-only one that carries a dummy tile."""
    data = {name.split("/")[1]: tensor for name, tensor in load_file(FOLDER / "collated_batch.safetensors").items()}
    rows = []
    for ids, labels, mask in zip(data["input_ids"], data["labels"], data["attention_mask"], strict=True):
        rows.append(row_of(ids[mask.bool()], labels[mask.bool()]))
    rows[0].tiles = io()["tiles"][data["tile_index"][data["image_flags"] == 1]]
    net, batch = tiny_mono(), Batch.collate(rows)
    total, weight = NextToken()(net, batch)
    close(total / weight, data["loss"])
    end = batch.row_lengths[0]
    close(all_logits(net, batch)[end - 8 : end], data["logits_last8_row0"])


def test_gradients() -> None:
    """The norm of every official tensor's gradient, and eight of them in full."""
    net = tiny_mono()
    loss, _ = loss_and_gradients(net, Batch.collate(rows_of("one_image")))
    expected = json.loads((FOLDER / "mono_v1_grads.json").read_text())
    close(loss, torch.tensor(expected["loss"]))
    ours = {name: official_gradient(net, name) for name in expected["norms"]}
    for name, norm in expected["norms"].items():
        assert float(ours[name].norm()) == pytest.approx(norm, rel=1e-3, abs=1e-6), name
    for name, theirs in load_file(FOLDER / "mono_v1_grads_full.safetensors").items():
        torch.testing.assert_close(ours[name], theirs, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def official_gradient(net: MultimodalLM, name: str) -> Tensor:
    """Gradient of our tensors that make up an official one; a missing gradient counts as zero."""

    def gradient(ours: str) -> Tensor:
        parameter = net.get_parameter(ours)
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

    link = next(link for link in official_links(net) if link.theirs == name)
    return link.to_theirs(*map(gradient, link.ours))


@pytest.mark.parametrize("case", ["gen_one_image", "gen_batch2_leftpad", "gen_text"])
def test_greedy_generation(case: str) -> None:
    ids, scores = recorded(case, "gen_ids"), recorded(case, "gen_scores")
    made = generate(tiny_mono(), rows_of(case), max_new_tokens=12, want_scores=True)
    assert made.ids == ids.tolist()
    assert made.scores is not None
    close(made.scores.transpose(0, 1), scores)


def test_visual_tokens() -> None:
    net = tiny_mono()
    for case in ("one_image", "two_tiles"):
        tiles = io()["tiles"][recorded(case, "tile_index")]
        close(net.patch_embedder(tiles).detach(), recorded(case, "vit_embeds").flatten(0, 1))


@pytest.mark.parametrize("pixels", [28, 84])
def test_positions_are_interpolated_to_other_tile_sizes(pixels: int) -> None:
    embedder = tiny_mono().patch_embedder
    tiles = recorded(f"feature_{pixels}px", "pixel_values")
    tokens = embedder(tiles).detach()
    assert len(tokens) == embedder.num_tokens(pixels, pixels)
    close(tokens, recorded(f"feature_{pixels}px", "vit_embeds").flatten(0, 1))


def test_interpolated_positions_equal_the_resized_parameter() -> None:
    embedder = tiny_mono().patch_embedder
    assert isinstance(embedder, MonoPatchEmbedder)
    grid = embedder.positions(12, 12).detach()[0].flatten(1).T
    close(grid, recorded("resize_pos_embed", "position_embedding")[0, 1:])


def test_pixel_shuffle_v1_leaves_the_grid_transposed() -> None:
    tiles = io()["tiles"][recorded("feature_ps_v1", "tile_index")]
    close(tiny_mono("v1").patch_embedder(tiles).detach(), recorded("feature_ps_v1", "vit_embeds").flatten(0, 1))


ROPES = {
    "none": dict(rope_scaling="none"),
    "linear2": dict(rope_scaling="linear", rope_factor=2.0),
    "dynamic2_max32": dict(rope_scaling="dynamic", rope_factor=2.0, max_positions=32),
    "none_max32": dict(rope_scaling="none", max_positions=32),
}


@pytest.mark.parametrize("name", ROPES)
def test_rotary_scaling(name: str) -> None:
    logits = all_logits(tiny_mono(**ROPES[name]), row_of(recorded("rope", "input_ids")[0]))
    close(logits[-4:], recorded(f"rope/{name}", "logits_last4")[0])


def test_dynamic_rotary_base_forgets_an_earlier_longer_row() -> None:
    """The released code's table only grows (`stale20`); ours gives what a new instance of it gives."""
    net, ids = tiny_mono(**ROPES["dynamic2_max32"]), recorded("rope", "input_ids")[0]
    all_logits(net, row_of(ids))
    logits = all_logits(net, row_of(ids[:20]))[-4:]
    close(logits, recorded("rope/dynamic2_max32", "fresh20_logits_last4")[0])
    assert (logits - recorded("rope/dynamic2_max32", "stale20_logits_last4")[0]).abs().max() > 0.1


def test_too_few_slots_are_an_error_and_not_a_loss_of_zero() -> None:
    """The released code takes the first 13 of 16 features and multiplies the loss by 0."""
    assert float(recorded("mismatch", "loss")) == 0.0
    ids = recorded("mismatch", "input_ids")[0]
    sample = row_of(ids, recorded("mismatch", "labels")[0], key="cat-42")
    sample.tiles = io()["tiles"][recorded("mismatch", "tile_index")]
    with pytest.raises(UserError, match="'cat-42': 13 image slots in the text, 16 visual tokens"):
        tiny_mono()(Batch.collate([row_of(ids[:4], key="fine"), sample]))


def test_the_tolerance_tells_a_real_difference_from_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """LayerNorm eps 1e-6 in place of 1e-5 is the smallest mistake the fixtures were measured with."""
    net = tiny_mono()
    net.patch_embedder.mlp[0].eps = 1e-6  # type: ignore[union-attr, index]
    with pytest.raises(AssertionError):
        close(all_logits(net, Batch.collate(rows_of("one_image"))), recorded_rows("one_image", "logits"))
    net = tiny_mono()
    monkeypatch.setattr(F, "silu", F.relu)
    with pytest.raises(AssertionError):
        close(all_logits(net, Batch.collate(rows_of("one_image"))), recorded_rows("one_image", "logits"))
