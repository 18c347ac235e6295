"""Loss by source and by kind of sample, tokens by kind: exact sums, however a step was split."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mmframe.batch import Batch, Sample
from mmframe.callbacks.breakdown import MOST_SOURCES, OTHERS, Breakdown
from mmframe.callbacks.jsonl import JsonlLogger, read_metrics
from mmframe.callbacks.learning_rates import LearningRates
from mmframe.callbacks.throughput import Throughput
from mmframe.objectives import NextToken, cross_entropy
from tests.helpers import QKV_FFN, fit, row, tiny_module

BATCHES = [
    Batch.collate([row("tt[i]TT|tTTTT", key="web:1, books:7"), row("tTT", key="books:9")]),
    Batch.collate([row("[ii]TTT", seed=1, key="web:2")]),
    Batch.collate([Sample.packed([row("tTTT", seed=2, key="books:3"), row("i[i]T", seed=3, key="web:4")])]),
    Batch.collate([row("tT", seed=4, key="nobody told")]),
]
BATCHES[0] = replace(BATCHES[0], doc_sources=("web", "books", "books"))  # a joined key tells of one source at most


def by_hand(module: Any, batches: list[Batch]) -> dict[str, float]:
    """The same figures, document by document."""
    sums: dict[str, list[float]] = {}
    for batch in batches:
        losses_S = cross_entropy(module.net(batch).logits, batch.labels[batch.supervised]).tolist()
        weights_S = module.objective.weights(batch).tolist()
        ends = batch.doc_lengths.cumsum(0)
        for place, loss, weight in zip(batch.supervised.tolist(), losses_S, weights_S, strict=True):
            document = int((ends <= place).sum())
            names = ["loss/all", "loss/image" if batch.doc_images[document] else "loss/text_only"]
            names += [f"loss/source/{source}"] if (source := batch.doc_sources[document]) else []
            for name in names:
                total = sums.setdefault(name, [0.0, 0.0])
                total[0] += loss * weight
                total[1] += weight
    return {name: total / weight for name, (total, weight) in sums.items()}


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_sums_are_exact_over_micro_batches(tmp_path, accumulate):
    module = tiny_module(QKV_FFN, objective=NextToken("sqrt"))
    # so that all steps see the same weights
    module.groups = {name: replace(group, lr=0.0) for name, group in module.groups.items()}
    expected = by_hand(copy.deepcopy(module), BATCHES)
    logging = {"logger": JsonlLogger(tmp_path), "log_every_n_steps": 4 // accumulate}
    fit(module, BATCHES, accumulate_grad_batches=accumulate, callbacks=[Breakdown(), LearningRates()], **logging)
    (line,) = [line for line in read_metrics(tmp_path) if "loss/all" in line]
    assert {name: value for name, value in line.items() if name.startswith("loss/")} == pytest.approx(expected)
    assert {"loss/source/web", "loss/source/books", "loss/text_only", "loss/image"} <= set(line)
    kinds = torch.cat([batch.kinds for batch in BATCHES])
    assert line["tokens/image"] == int((kinds == 1).sum()) and line["tokens/text"] == int((kinds == 0).sum())
    assert line["tokens/boundary"] == 6 and "tokens/query" not in line
    assert line["tokens/supervised"] == sum(batch.supervised.numel() for batch in BATCHES)
    assert [name for name in line if name.startswith("lr/")] and "lr/text/no_decay" not in line


def test_ranks_are_added_up_by_name(monkeypatch):
    """Each rank may have met other sources."""
    callback = Breakdown()
    callback._count(BATCHES[1], (torch.tensor([1.0, 2.0, 3.0]), torch.ones(3)))
    other = {"tokens/text": [5.0], "loss/all": [4.0, 2.0], "loss/source/elsewhere": [4.0, 2.0]}

    def gather(parts: list[Any], mine: Any) -> None:
        parts[:] = [mine, other]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    values = callback.values(callback._of_all_ranks(2))
    assert values["loss/all"] == 10 / 5 and values["loss/source/web"] == 2 and values["loss/source/elsewhere"] == 2
    assert values["tokens/text"] == 5 + 3


def test_a_killed_run_goes_on_with_its_sums():
    def per_token(batch: Batch) -> tuple[Tensor, Tensor]:
        return torch.arange(batch.supervised.numel()).float(), torch.ones(batch.supervised.numel())

    whole, first, second = Breakdown(), Breakdown(), Breakdown()
    for batch in BATCHES:
        whole._count(batch, per_token(batch))
    for batch in BATCHES[:2]:
        first._count(batch, per_token(batch))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for batch in BATCHES[2:]:
        second._count(batch, per_token(batch))
    assert second._of_all_ranks(1) == whole._of_all_ranks(1)


def test_names_without_end_are_counted_together():
    callback = Breakdown()
    for number in range(MOST_SOURCES + 5):
        callback._row(f"source {number}")
    assert len(callback.names) == 3 + MOST_SOURCES + 1 and callback.names[-1] == f"source/{OTHERS}"


def test_a_source_may_be_called_like_a_group():
    callback, given = Breakdown(), replace(BATCHES[1], doc_sources=("text_only",))
    callback._count(given, (torch.tensor([1.0, 2.0, 3.0]), torch.ones(3)))
    values = callback.values(callback._of_all_ranks(1))
    assert values["loss/source/text_only"] == values["loss/image"] == 2 and "loss/text_only" not in values


class SaveFirst(Callback):
    """Keeps the checkpoint of the first step."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        file = Path(trainer.default_root_dir, "first.ckpt")
        if trainer.global_step == 1 and not file.exists():
            trainer.save_checkpoint(file)


def test_the_first_step_after_a_resume_is_counted_whole(tmp_path):
    """It has two micro-batches, and the checkpoint was taken where a line was due."""

    def second_line(ckpt_path: Path | None = None) -> dict[str, Any]:
        folder = tmp_path / ("whole" if ckpt_path is None else "resumed")
        options: dict[str, Any] = {"logger": JsonlLogger(folder), "log_every_n_steps": 1, "accumulate_grad_batches": 2}
        options |= {"callbacks": [Throughput(), Breakdown(), SaveFirst()], "default_root_dir": tmp_path}
        fit(tiny_module(QKV_FFN), BATCHES, ckpt_path, **options)
        return read_metrics(folder)[-1]

    whole, resumed = second_line(), second_line(tmp_path / "first.ckpt")
    told = {name for name in whole if name.startswith(("loss/", "tokens/", "train/tokens", "train/image"))}
    told.remove("train/tokens_per_s")
    assert len(told) > 6 and {name: resumed.get(name) for name in told} == {name: whole[name] for name in told}
