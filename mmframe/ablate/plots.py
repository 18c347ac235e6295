"""Plots of a grid, from its two CSVs alone: curves with a band over seeds, and the differences to the baseline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from mmframe.ablate.table import CsvRow, Table  # noqa: E402

BASELINE = "#222222"


def draw_curves(file: Path, curves: Sequence[CsvRow], table: Table) -> None:
    """Every logged metric against tokens: mean over seeds, and the band from the lowest to the highest of them."""
    metrics = list(dict.fromkeys(row["metric"] for row in curves))
    figure, axes = plt.subplots(1, max(1, len(metrics)), figsize=(6 * max(1, len(metrics)), 4), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=False):
        for variant, colour in _colours(table).items():
            mine = [row for row in curves if row["metric"] == metric and row["variant"] == variant]
            if not mine:
                continue
            tokens, values = _on_common_tokens(mine)
            axis.plot(tokens, values.mean(0), color=colour, lw=1.6, label=variant)
            axis.fill_between(tokens, values.min(0), values.max(0), color=colour, alpha=0.18, lw=0)
        axis.set(xlabel="tokens", ylabel=metric)
        axis.set_title(f"{metric}, mean and range over seeds", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    if axes[0, 0].get_legend_handles_labels()[0]:
        axes[0, 0].legend(frameon=False, fontsize=8)
    _save(figure, file)


def _on_common_tokens(rows: Sequence[CsvRow]) -> tuple[Any, Any]:
    """Seeds see other tokens at the same step: values [seeds, n] on the tokens of the seed with the fewest points."""
    by_seed: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        by_seed[row["seed"]].append((float(row["tokens"]), float(row["value"])))
    series = [np.array(sorted(points)).T for points in by_seed.values()]
    tokens = min(series, key=lambda points: points.shape[1])[0]
    return tokens, np.stack([np.interp(tokens, x, y) for x, y in series])


def draw_deltas(file: Path, table: Table) -> None:
    """Bars: mean paired difference of each variant to the baseline, with its 95 % interval; a panel for each metric."""
    metrics = table.metrics
    others = [variant for variant in table.variants if variant != table.baseline]
    height = 1.6 + 0.4 * max(1, len(others))
    figure, axes = plt.subplots(1, max(1, len(metrics)), figsize=(5 * max(1, len(metrics)), height), squeeze=False)
    colours = _colours(table)
    for axis, (metric, better) in zip(axes[0], metrics.items(), strict=False):
        deltas = {variant: table.delta(variant, metric) for variant in others}
        shown = [variant for variant in others if deltas[variant].n]
        means = [deltas[variant].mean for variant in shown]
        halves = [np.nan_to_num(deltas[variant].high - deltas[variant].mean) for variant in shown]
        axis.barh(shown, means, xerr=halves, color=[colours[variant] for variant in shown], capsize=3, height=0.6)
        axis.axvline(0, color=BASELINE, lw=0.8)
        axis.invert_yaxis()
        axis.set(xlabel=f"difference to {table.baseline}")
        axis.set_title(f"{metric} ({better} is better)", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, file)


def _colours(table: Table) -> dict[str, Any]:
    others = [variant for variant in table.variants if variant != table.baseline]
    colours = plt.get_cmap("tab10" if len(others) <= 10 else "viridis")
    scale = 1 if len(others) <= 10 else 256 / max(1, len(others))
    return {table.baseline: BASELINE} | {name: colours(int(n * scale)) for n, name in enumerate(others)}


def _save(figure: Any, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)
