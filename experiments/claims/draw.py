"""Figures of the claims: every comparison with its interval, and the runs of each grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.claims.claims import Claim
from experiments.claims.verdict import Finding
from mmframe.ablate.table import Table

COLOURS = {"reproduced": "tab:green", "not reproduced": "tab:red", "undecided": "tab:gray", "not run": "lightgray"}


def draw_overview(file: Path, decided: Mapping[str, Sequence[Finding]]) -> None:
    """Paired differences in units of half their interval, the claimed direction to the right: beyond 1 is decided."""
    shown = [
        (f"{name}: {finding.comparison.says} ({finding.comparison.metric})", finding)
        for name, found in decided.items()
        for finding in found
        if finding.difference is not None and finding.difference.n > 1
    ]
    figure, axis = plt.subplots(figsize=(10, 1.2 + 0.3 * max(1, len(shown))), layout="constrained")
    for row, (_, finding) in enumerate(shown):
        delta = finding.difference
        assert delta is not None
        half = (delta.high - delta.low) / 2 or 1e-12
        place = (-delta.mean if finding.better_is == "lower" else delta.mean) / half
        place = max(-6.0, min(6.0, place))
        axis.errorbar(place, row, xerr=1, fmt="o", color=COLOURS[finding.verdict], capsize=3)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(shown)), [name for name, _ in shown], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(-7.5, 7.5)
    axis.set_xlabel("difference in half widths of its 95 % interval (cut off at 6); right: as claimed")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def draw_claim(file: Path, claim: Claim, table: Table) -> None:
    """The headline of every variant: a dot for each seed, joined where seeds are paired, and the mean. Variants that
    each saw another number of samples make a curve over them."""
    metric = claim.comparisons[0].metric
    samples = {variant: table.spread(variant, "samples") for variant in table.variants}
    curve = len({spread.mean for spread in samples.values() if spread.n}) == len(samples) > 1
    places = {variant: samples[variant].mean if curve else n for n, variant in enumerate(table.variants)}
    figure, axis = plt.subplots(figsize=(1.5 + 1.1 * len(places), 3.6), layout="constrained")
    seeds = sorted({seed for variant in places for seed in table.by_seed(variant, metric)})
    for seed in seeds:
        points = sorted((place, table.by_seed(variant, metric).get(seed)) for variant, place in places.items())
        there = [(place, value) for place, value in points if value is not None]
        axis.plot(*zip(*there, strict=True), "o-", alpha=0.5, linewidth=0.8, label=f"seed {seed}")
    means = [(place, spread.mean) for v, place in places.items() if (spread := table.spread(v, metric)).n]
    if curve:
        axis.plot(*zip(*sorted(means), strict=True), color="black", linewidth=2, label="mean")
        axis.set_xscale("log", base=2)
        ticks = [f"{variant}\n{place:,.0f}" for variant, place in places.items()]
        axis.set_xticks(list(places.values()), ticks, fontsize=8)
        axis.set_xlabel("samples seen")
    else:
        for place, mean in means:
            axis.plot([place - 0.25, place + 0.25], [mean] * 2, color="black", linewidth=2)
        axis.set_xticks(list(places.values()), list(places), rotation=20, ha="right", fontsize=8)
    axis.set_ylabel(f"{metric} ({table.metrics.get(metric, '')} is better)")
    axis.set_title(claim.name, fontsize=10)
    if seeds:
        axis.legend(fontsize=7)
    figure.savefig(file, dpi=110)
    plt.close(figure)
