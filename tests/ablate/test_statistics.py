"""Statistics against values worked out by hand and against published tables."""

from __future__ import annotations

import math

import pytest

from mmframe.ablate.statistics import Spread, paired, t_quantile, t_within


@pytest.mark.parametrize(
    "freedom, quantile",
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (5, 2.57058), (9, 2.26216), (30, 2.04227), (120, 1.97993)],
)
def test_quantiles_of_t_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(quantile, abs=6e-6)
    assert t_within(t_quantile(0.9, freedom), freedom) == pytest.approx(0.8, abs=1e-10)


def test_closed_forms_of_few_degrees() -> None:
    """1: the Cauchy distribution; 2: t / sqrt(2 + t^2)."""
    for t in (0.1, 1.0, 7.0):
        assert t_within(t, 1) == pytest.approx(2 / math.pi * math.atan(t), rel=1e-12)
        assert t_within(t, 2) == pytest.approx(t / math.sqrt(2 + t * t), rel=1e-12)


def test_a_paired_difference_by_hand() -> None:
    delta = paired([2.8, 2.9, 3.0], [3.0, 3.2, 3.1])  # -0.2, -0.3, -0.1: mean -0.2, sd 0.1
    assert delta.mean == pytest.approx(-0.2) and delta.n == 3 and not delta.decided
    assert delta.high - delta.mean == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert paired([2.8, 2.9, 2.8], [3.0, 3.1, 3.01]).decided


def test_spread_between_seeds_does_not_widen_a_paired_difference() -> None:
    one = paired([1.0, 5.0, 9.0], [1.1, 5.1, 9.1])
    assert one.high - one.low == pytest.approx(0, abs=1e-9) and one.decided


def test_one_run_has_no_spread_and_no_interval() -> None:
    assert math.isnan(Spread.of([1.0]).sd) and math.isnan(Spread.of([]).mean)
    alone = paired([1.0], [2.0])
    assert alone.mean == -1 and math.isnan(alone.low) and not alone.decided
