"""What every metric promises."""

from __future__ import annotations

import math
import pickle

import pytest

from mmframe.errors import UserError
from mmframe.metrics import TaskMetric
from tests.contracts.support import every, make


def measured(*metrics: TaskMetric) -> str:
    """The figures as text: NaN equals NaN, and every digit counts."""
    (text,) = {repr(metric.compute()) for metric in metrics}
    return text


def fed(cls: type, order: list[int], batch_size: int = 1) -> TaskMetric:
    """A metric that has seen its own samples in this order; each has its index for an id."""
    metric, samples = make(cls), cls.samples  # type: ignore[attr-defined]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        metric.update([samples[n][0] for n in chosen], [samples[n][1] for n in chosen], chosen)
    return metric


@every("metric")
def test_metric_says_what_a_record_of_a_result_cites(cls: type) -> None:
    metric = make(cls)
    assert all(isinstance(text, str) and text for text in (metric.name, metric.version, metric.headline))
    assert len(metric.samples) > 1 and all(set(metric.needs) <= set(right) for _, right in metric.samples)
    figures = fed(cls, [0, 1]).compute()
    assert metric.headline in figures and figures["n"] == 2
    assert ("unmatched" in figures) == metric.extracts
    assert all(type(value) is float for value in figures.values())
    assert metric.higher_is_better in (True, False)


@every("metric")
def test_metric_of_nothing_is_not_a_number(cls: type, recwarn: pytest.WarningsRecorder) -> None:
    figures = make(cls).compute()
    assert math.isnan(figures[cls.headline]) and figures["n"] == 0  # type: ignore[attr-defined]
    assert not list(recwarn)


@every("metric")
def test_metric_does_not_depend_on_order_batches_or_repeats(cls: type) -> None:
    order = list(range(len(cls.samples)))  # type: ignore[attr-defined]
    metrics = [fed(cls, order), fed(cls, order[::-1]), fed(cls, order, 2), fed(cls, [*order, order[0]], 3)]
    assert "nan" not in measured(*metrics).split("'n'")[0] or cls.__name__ == "Perplexity"
    first = metrics[0]
    again = make(cls)
    for number in order:  # torchmetrics' forward, which a LightningModule calls, gives the batch's figures
        alone = again([first.samples[number][0]], [first.samples[number][1]], [number])
        assert alone["n"] == 1
    measured(first, again)


@every("metric")
def test_metric_merges_and_comes_back_from_its_state(cls: type) -> None:
    order = list(range(len(cls.samples)))  # type: ignore[attr-defined]
    whole, one, other = fed(cls, order), fed(cls, order[:1]), fed(cls, order[1:])
    one.merge_state(other)
    loaded = make(cls)
    loaded.load_state_dict(fed(cls, order, 2).state_dict())
    emptied = fed(cls, order)
    emptied.reset()
    emptied.merge_state(whole)
    measured(whole, one, loaded, emptied, pickle.loads(pickle.dumps(whole)), whole.half())


@every("metric")
def test_metric_says_which_key_a_reference_lacks(cls: type) -> None:
    metric = make(cls)
    said, right = metric.samples[0]
    for key in metric.needs:
        with pytest.raises(UserError, match=f"{metric.name}: the reference of sample 'q1' has no {key!r}"):
            metric.update([said], [{name: value for name, value in right.items() if name != key}], ["q1"])
    assert metric.compute()["n"] == 0
