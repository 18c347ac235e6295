"""Strategies on two gloo ranks: each gives what one process gives, and what it writes can be used everywhere.

One launch of two ranks runs all cases (cases.py); the tests look at what it left.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import mmframe
from components.freezing.delta_tuning import Everything, VisualParameters
from tests.distributed import cases
from tests.distributed.ranks import on_two_ranks, result
from tests.helpers import QKV_FFN, Recording, all_logits, differing, fit, mixed_batch, tiny_module, tiny_net
from tests.model.ranks import STEPS, ranked_module
from tests.model.test_training_promises import check_same_gradients, joined

pytestmark = pytest.mark.timeout(900)  # against a hang only


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    on_two_ranks(folder, cases.CASES, seconds=800)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs in one process, which has the whole batch."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("ddp", "fsdp2_all", "fsdp2_lora", "fsdp2_teacher"):
            words = [word for word in cases.RUNS[name] if not word.startswith("--config=")]
            cases.run(name, *words, recipe=cases.recipe_of(name))
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    (file,) = folder.rglob("weights.safetensors")
    return load_file(file)


def check_close(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Sums in another order: AdamW makes a step of either sign of a gradient next to zero, so a few may differ by one
    step; the mean may not."""
    assert set(ours) == set(expected)
    for name, tensor in expected.items():
        difference = (ours[name] - tensor).abs()
        assert difference.mean() < 2e-6 and difference.max() < 5e-3, (name, difference.mean(), difference.max())


# ---- P17, P21: batches of any kind on each rank


@pytest.mark.parametrize("name", ["visual", "all"])
def test_any_mix_of_batches_trains_with_shards(ranks: Path, name: str) -> None:
    """Weights are equal on both ranks, and gradients those of one process that sees all rows."""
    first, second = (result(ranks, "any_mix", rank)[name] for rank in range(2))
    assert differing(first["weights"], second["weights"]) == set()
    policy = {"visual": VisualParameters(1e-2, 1e-2), "all": Everything(1e-2, 1e-2, 1e-2)}[name]
    module = tiny_module(QKV_FFN, freezing=policy, module_class=Recording)
    assert isinstance(module, Recording)
    fit(module, [joined([step]) for step in STEPS])
    assert len(first["gradients"]) == len(STEPS)
    for step, (ours, expected) in enumerate(zip(first["gradients"], module.recorded, strict=True)):
        check_same_gradients(ours, expected, 1e-6 if step == 0 else 1e-3)


def test_each_rank_has_its_share_of_every_tensor(ranks: Path) -> None:
    shares = [result(ranks, "any_mix", rank)["all"]["share"] for rank in range(2)]
    total = sum(tensor.numel() for tensor in result(ranks, "any_mix")["all"]["weights"].values())
    assert sum(shares) == total and max(shares) < 0.55 * total


def test_accumulation_an_auxiliary_loss_and_recomputation_with_shards(ranks: Path) -> None:
    first, second = (result(ranks, "accumulated", rank) for rank in range(2))
    module = ranked_module("sqrt", True)
    fit(module, [joined(STEPS[i : i + 2]) for i in range(0, len(STEPS), 2)])
    for step, (ours, other, expected) in enumerate(zip(first, second, module.recorded, strict=True)):
        assert differing(ours, other) == set()
        assert any(name.startswith("auxiliary.") for name in expected)
        check_same_gradients(ours, expected, 1e-6 if step == 0 else 1e-3)


# ---- the command line


@pytest.mark.parametrize("name", ["ddp", "deepspeed", "fsdp2", "fsdp2_all", "fsdp2_lora", "fsdp2_teacher"])
def test_a_strategy_gives_the_weights_of_one_process(ranks: Path, alone: Path, name: str) -> None:
    """With gradient clipping, in 5 steps of fp32: the first stage, all parameters, an adapter, an auxiliary loss."""
    if name not in cases.RUNS:
        pytest.skip("DeepSpeed is not installed")
    same = "ddp" if name in ("fsdp2", "deepspeed") else name
    check_close(weights(ranks / name), weights(alone / same))


def test_spread_optimiser_state_changes_no_bit(ranks: Path) -> None:
    assert differing(weights(ranks / "ddp_bf16"), weights(ranks / "zero1_bf16")) == set()


@pytest.mark.parametrize("name", cases.RESUMED)
def test_a_run_that_was_cut_off_goes_on_bit_for_bit(ranks: Path, name: str) -> None:
    folder = ranks / f"{name}_resumed"
    (meta,) = folder.rglob("meta.json")
    assert [attempt["resumed"] for attempt in json.loads(meta.read_text())["attempts"]] == [False, True]
    assert differing(weights(folder), weights(ranks / name)) == set()


@pytest.mark.parametrize("name", ["fsdp2_bf16", "fsdp2_lora", "ddp_bf16"])
def test_a_checkpoint_of_the_trainer_is_a_model(ranks: Path, name: str) -> None:
    """Shards or one file; what an adapter adds is merged. The weights are those of the step it was written at."""
    (last,) = (ranks / name).rglob("last.ckpt")
    assert last.is_dir() == (name == "fsdp2_bf16")
    loaded = mmframe.from_pretrained(last)
    handed = weights(ranks / name)
    assert set(loaded.net.state_dict()) == set(handed)
    changed = differing(dict(loaded.net.state_dict()), handed)
    assert changed and not any(name.startswith("backbone.embedding") for name in changed)  # step 3 of 5
    assert loaded.processor.tokenizer.vocab_size > 0


def test_a_checkpoint_of_the_trainer_starts_another_stage(ranks: Path) -> None:
    for name in ("fsdp2_bf16", "fsdp2_lora"):
        assert list((ranks / f"after_{name}").rglob("done.json")), name


def test_a_checkpoint_of_one_file_is_continued_by_another_strategy(ranks: Path) -> None:
    check_close(weights(ranks / "moved"), weights(ranks / "fsdp2_lora"))


# ---- tensor parallel inference


def test_a_spread_model_gives_the_logits_of_one_process(ranks: Path) -> None:
    first, second = (result(ranks, "spread_model", rank) for rank in range(2))
    net = tiny_net(QKV_FFN, distinct=True).eval()
    assert torch.equal(first["logits"], second["logits"])
    torch.testing.assert_close(first["logits"], all_logits(net, mixed_batch()), atol=1e-5, rtol=1e-5)
    assert first["parameters"] < 0.75 * sum(p.numel() for p in net.parameters())


def test_a_spread_model_answers_as_one_process_and_goes_on_after_a_kill(
    ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ranks)
    cases.answer("one.jsonl", "ddp/s1_1_concept", "--batch-size=2")
    expected = (ranks / "one.jsonl").read_text()
    assert (ranks / "two.jsonl").read_text() == (ranks / "cut.jsonl").read_text() == expected
    assert len(expected.splitlines()) == 3
    assert (ranks / "answered.log1").read_text() == "", "the second rank says nothing"
