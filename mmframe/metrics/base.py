"""What all metrics share: a state that any split over batches and ranks fills alike, and a result as plain floats."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from mmframe.contracts import Component
from mmframe.errors import UserError

Row = dict[str, Any]
"""What is kept of one sample: plain data of a few entries."""


class TaskMetric(Component, Metric, ABC):
    """Base of every metric: a row a sample, and figures made of all rows at once.

    The rows are the state, as JSON lines in byte tensors, which torchmetrics gathers over ranks like any list of
    tensors. Figures are made of the rows in an order of their own, with exactly rounded sums, so that batch size,
    order and number of ranks change no digit. Shares are percentages.

    A sample that is given twice under one id (the padding of a distributed sampler) counts once; if its two answers
    differ, the same one counts in any order. Without ids every sample counts.

    A reference may have a `category` (split, subject, ability), or a list of them: then all figures are also made of
    each category alone, as `<category>/<figure>`.
    """

    name: ClassVar[str]
    """What a record of a result cites, with `version`."""
    version: ClassVar[str] = "1"
    """Changes when the same answers may get another score."""
    headline: ClassVar[str]
    """The figure that stands in tables."""
    needs: ClassVar[tuple[str, ...]]
    """Keys that a reference must have."""
    samples: ClassVar[list[tuple[Any, Row]]]
    """A few predictions and references, as an example and for tests/contracts."""
    extracts: ClassVar[bool] = False
    """Whether it has to find the answer in a text; `unmatched` then counts where it could not: wrong, never guessed."""
    higher_is_better: bool | None = True
    is_differentiable = False
    full_state_update = False  # so that torchmetrics can merge two states

    lines: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("lines", default=[], dist_reduce_fx="cat", persistent=True)
        self.set_dtype(torch.uint8)  # a rank without samples sends an empty tensor of this type

    @property
    def update_called(self) -> bool:
        """Always: no samples (an empty task, a rank without any) are no mistake that torchmetrics should warn of."""
        return True

    @abstractmethod
    def score(self, prediction: Any, reference: Mapping[str, Any]) -> Row:
        """The row of one sample. What shows how it was scored has plain names: ``score``, ``chosen``.

        Args:
            prediction: The answer as generated; a text if the metric does not say otherwise.
            reference: Has the keys of `needs`.

        Returns:
            Plain data; a `category` in it replaces that of the reference.
        """

    @abstractmethod
    def summarise(self, rows: Sequence[Row]) -> dict[str, float]:
        """Figures of these rows; NaN where there is nothing to divide by."""

    def update(
        self, predictions: Sequence[Any], references: Sequence[Mapping[str, Any]], ids: Sequence[Any] | None = None
    ) -> None:
        """Adds samples.

        Args:
            predictions: One a sample.
            references: One a sample, see `needs` and the class.
            ids: Names of the samples, unique in the task.

        Raises:
            UserError: lengths differ, or a reference lacks a key.
        """
        names = [None] * len(predictions) if ids is None else ids
        if not len(predictions) == len(references) == len(names):
            raise UserError(
                f"metric {self.name}: {len(predictions)} predictions, {len(references)} references and {len(names)} "
                "ids are not one each a sample"
            )
        made = []
        for prediction, reference, given in zip(predictions, references, names, strict=True):
            for key in self.needs:
                if key not in reference:
                    where = "" if given is None else f" of sample {given!r}"
                    has = ", ".join(map(str, reference)) or "nothing"
                    raise UserError(f"metric {self.name}: the reference{where} has no {key!r}, it has {has}")
            row = dict(self.score(prediction, reference))
            if reference.get("category") is not None:
                row.setdefault("category", reference["category"])
            made.append(json.dumps([None if given is None else str(given), row], sort_keys=True))
        if made:
            text = "".join(line + "\n" for line in made).encode()
            self.lines.append(torch.frombuffer(bytearray(text), dtype=torch.uint8).to(self.device))

    def rows(self) -> list[Row]:
        """The rows of all samples, in an order that does not depend on that of the updates; each id once."""
        parts = self.lines if isinstance(self.lines, list) else [self.lines]  # one tensor after a gather
        lines = sorted(line for part in parts for line in part.cpu().numpy().tobytes().decode().splitlines())
        found: dict[Any, Row] = {}
        for number, line in enumerate(lines):
            given, row = json.loads(line)
            found.setdefault(number if given is None else given, row)
        return list(found.values())

    def compute(self) -> dict[str, float]:
        """The figures, `n` (samples) among them, of all samples and of each category."""
        rows = self.rows()
        figures = self.figures(rows)
        categories: dict[str, list[Row]] = {}
        for row in rows:
            given = row.get("category", [])
            for category in dict.fromkeys(given if isinstance(given, list) else [given]):
                categories.setdefault(str(category), []).append(row)
        for category in sorted(categories):
            figures |= {f"{category}/{key}": value for key, value in self.figures(categories[category]).items()}
        return figures

    def figures(self, rows: Sequence[Row]) -> dict[str, float]:
        """`summarise`, with the number of samples and of those in which no answer was recognised."""
        figures = {**self.summarise(rows), "n": len(rows)}
        if self.extracts:
            figures["unmatched"] = sum(row["unmatched"] for row in rows)
        return {key: float(value) for key, value in figures.items()}


class MeanMetric(TaskMetric):
    """Base of metrics whose figure is the mean of a score a sample, in percent."""

    def summarise(self, rows: Sequence[Row]) -> dict[str, float]:
        return {self.headline: percent(row["score"] for row in rows)}


def share(part: float, whole: float) -> float:
    """part / whole in percent; NaN of nothing."""
    return 100 * part / whole if whole else math.nan


def percent(scores: Iterable[float]) -> float:
    """Mean of scores between 0 and 1, in percent, exactly rounded: the same in any order; NaN of none."""
    found = [float(score) for score in scores]
    return share(math.fsum(found), len(found))


def all_right(rows: Iterable[Row], key: str) -> float:
    """Percent of groups (equal `key`) in which every row has score 1."""
    groups: dict[str, bool] = {}
    for row in rows:
        groups[row[key]] = groups.get(row[key], True) and row["score"] == 1
    return percent(groups.values())


def texts(value: Any, what: str) -> list[str]:
    """Accepted answers as a list: one answer may stand alone.

    Raises:
        UserError: there is none.
    """
    found = [str(one) for one in value] if isinstance(value, (list, tuple)) else [str(value)]
    if not found:
        raise UserError(f"metric {what}: a reference without any answer; leave such samples out of the task")
    return found
