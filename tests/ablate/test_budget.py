"""Steps within a budget are counted on the very rows that training will see."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from mmframe.ablate import surveyor
from mmframe.ablate.budget import ranks, step_rows, steps_within
from mmframe.data import ConversationData, ToyData
from mmframe.data.base import EpochSampler, MultimodalData
from tests.data.mixtures import Listed, mixture, pairs, texts
from tests.data.support import embedder, processor, write_set
from tests.helpers import tiny_embedder


@pytest.mark.parametrize("rows, batch, accumulate, world", [(10, 4, 1, 1), (10, 4, 2, 1), (11, 2, 2, 2), (7, 3, 1, 4)])
def test_a_step_holds_the_rows_that_the_sampler_deals(rows: int, batch: int, accumulate: int, world: int) -> None:
    dealt = [EpochSampler(rows, rank, world) for rank in range(world)]
    wanted = []
    for _ in range(2):
        loaders = [list(DataLoader(range(rows), batch, sampler=_Flat(sampler))) for sampler in dealt]
        batches = [torch.cat(parts).tolist() for parts in zip(*loaders, strict=True)]
        wanted += [sum(batches[n : n + accumulate], []) for n in range(0, len(batches), accumulate)]
    walk = [places for _, places in itertools.islice(step_rows(rows, batch, accumulate, world), len(wanted))]
    assert [sorted(p % rows for p in places) for places in walk] == [sorted(step) for step in wanted]


class _Flat:
    """Indices of an EpochSampler without its epochs."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def __iter__(self):
        return (index for _, index in iter(self.sampler))

    def __len__(self) -> int:
        return len(self.sampler)


def test_the_fewest_steps_that_reach_it() -> None:
    assert [steps_within(amount, itertools.repeat(8)) for amount in (1, 8, 9, 64)] == [1, 1, 2, 8]
    assert steps_within(20, itertools.cycle([8, 8, 2])) == 4, "a smaller last batch counts as what it holds"
    limited = [len(places) for _, places in itertools.islice(step_rows(10, 4, limit=2), 4)]
    assert limited == [4, 4, 4, 4]


TRAINERS = [({}, 1), ({"devices": "auto"}, 1), ({"devices": -1}, 1), ({"devices": [0, 1], "num_nodes": 2}, 4)]


@pytest.mark.parametrize("trainer, count", TRAINERS)
def test_devices_of_a_run(trainer: dict, count: int) -> None:
    assert ranks(trainer) == count


def conversations(folder: Path) -> MultimodalData:
    data = ConversationData(train=str(write_set(folder)), batch_size=3, questions_per_image=2, seed=5)
    return data.connect(processor(), embedder())


def toys(folder: Path) -> MultimodalData:
    return ToyData(size=10, batch_size=4).connect(processor(), tiny_embedder())


def mixed(folder: Path) -> MultimodalData:
    return mixture(
        {"pairs": Listed(pairs(folder, 30), "a", prompts=["what is it?", "x"]), "text": Listed(texts(9), "t")}
    )


@pytest.mark.parametrize("make", [conversations, toys, mixed])
def test_tokens_are_those_of_the_batches(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = make(tmp_path)
    loader = data.train_dataloader()
    sizes = [batch.num_tokens for _ in range(2) for batch in loader]
    monkeypatch.setattr(surveyor, "_connected", lambda question: data)
    asked = {"unit": "tokens", "accumulate": 1, "ranks": 1, "limit": None}
    for steps in (1, len(loader), len(loader) + 2):
        reached = sum(sizes[:steps])
        assert surveyor.steps({**asked, "amount": reached}) == steps
        assert surveyor.steps({**asked, "amount": reached + 1}) == steps + 1
