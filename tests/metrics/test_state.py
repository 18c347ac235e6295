"""P43: what a score does not depend on: ranks, repeats, order; tests/contracts has it for every metric."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mmframe import registry
from mmframe.errors import UserError
from mmframe.metrics.anls import ANLS
from mmframe.metrics.exact_match import ExactMatch

FORK = multiprocessing.get_context("fork")
RANKS = 3


def test_a_sample_that_is_given_twice_counts_once() -> None:
    metric = ExactMatch()
    metric.update(["a", "b"], [{"answers": "a"}, {"answers": "x"}], ids=[0, 1])
    metric.update(["b"], [{"answers": "x"}], ids=["1"])  # a name and its text are one
    assert metric.compute() == {"accuracy": 50, "n": 2}
    metric.update(["b"], [{"answers": "x"}])  # without an id it is a sample of its own
    assert metric.compute()["n"] == 3


def test_of_two_answers_under_one_id_the_same_counts_in_any_order() -> None:
    found = set()
    for first, second in (("a", "b"), ("b", "a")):
        metric = ExactMatch()
        metric.update([first], [{"answers": "a"}], ids=[7])
        metric.update([second], [{"answers": "a"}], ids=[7])
        found.add(metric.compute()["accuracy"])
    assert len(found) == 1


def test_sums_are_exact_in_any_order() -> None:
    answers = ["a" * n + "b" * (37 - n) for n in range(37)]
    samples = [("a" * 37, {"answers": answer}) for answer in answers]
    found = set()
    for step in (1, 5, 11):
        metric = ANLS(threshold=0)
        for start in range(step):
            part = samples[start::step]
            metric.update([said for said, _ in part], [right for _, right in part])
        found.add(metric.compute()["anls"])
    assert len(found) == 1


def test_what_does_not_fit_together_is_named() -> None:
    with pytest.raises(UserError, match="anls: 1 predictions, 2 references and 1 ids"):
        ANLS().update(["a"], [{"answers": "a"}] * 2)
    with pytest.raises(UserError, match="reference of sample 'q7' has no 'answers', it has answer, split"):
        ANLS().update(["a"], [{"answer": "a", "split": "val"}], ids=["q7"])


def parts() -> list[tuple[type, list[tuple[Any, dict]]]]:
    """Every metric, and its samples as the padded sampler of RANKS ranks gives them: the last rank has none."""
    return [(cls, cls.samples) for cls in registry.classes("metric")]  # type: ignore[attr-defined]


def rank(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=RANKS)
    found = []
    for cls, samples in parts():
        metric = cls()
        mine = [*enumerate(samples), (0, samples[0])][number :: RANKS - 1] if number < RANKS - 1 else []
        for index, (said, right) in mine:
            metric.update([said], [right], ids=[index])
        found.append(repr(metric.compute()))
    Path(folder, f"{number}.txt").write_text("\n".join(found), encoding="utf-8")
    dist.destroy_process_group()


def test_all_ranks_have_the_score_of_one(tmp_path: Path) -> None:
    expected = []
    for cls, samples in parts():
        metric = cls()
        metric.update([said for said, _ in samples], [right for _, right in samples], range(len(samples)))
        expected.append(repr(metric.compute()))
    running = [FORK.Process(target=rank, args=(number, str(tmp_path))) for number in range(RANKS)]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=60)
        process.kill()
    assert [process.exitcode for process in running] == [0] * RANKS
    for number in range(RANKS):
        assert Path(tmp_path, f"{number}.txt").read_text(encoding="utf-8").splitlines() == expected
