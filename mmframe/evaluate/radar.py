"""A radar plot as in the paper's first figure: one axis a benchmark, each with a scale of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from mmframe.evaluate.tables import Cell, Report, Row  # noqa: E402

INNER = 0.25
"""Radius of the lowest figure of an axis: in the middle itself the lines could not be told apart."""
GREYS = ("#5b7fa6", "#c98b4b", "#7a9a68", "#9a7aa8", "#8f8f8f", "#b0766f")


def draw_radar(file: Path, report: Report, published: Sequence[str]) -> None:
    """Draws our rows against published ones.

    An axis runs from the lowest to the highest figure of the rows shown, which stands at its end. A row without a
    figure on an axis has a gap there.

    Args:
        file: PNG.
        report: With FEWEST_AXES `radar_axes` or more.
        published: Names of published rows.
    """
    axes = report.radar_axes()
    shown = [(name, False) for name in published]
    shown += [
        (row.name, True) for row in report.rows if any(_cell(rows, row.name, True, a) for a, rows in axes.items())
    ]
    lines = {key: [_cell(rows, *key, axis) for axis, rows in axes.items()] for key in shown}
    known = [[cell.score for cell in at if cell is not None] for at in zip(*lines.values(), strict=True)]
    ends = [(min(scores), max(scores)) for scores in known]
    angles = [2 * math.pi * place / len(axes) for place in range(len(axes))]
    figure, plot = plt.subplots(figsize=(7.5, 8), subplot_kw={"projection": "polar"})
    plot.set_theta_offset(math.pi / 2)  # type: ignore[attr-defined]
    plot.set_theta_direction(-1)  # type: ignore[attr-defined]
    accents = plt.get_cmap("Set1")
    for place, ((name, mine), line) in enumerate(lines.items()):
        colour = accents((place - len(published)) % 9) if mine else GREYS[place % len(GREYS)]
        radii = [_radius(cell.score, *end) if cell else math.nan for cell, end in zip(line, ends, strict=True)]
        plot.plot([*angles, angles[0]], [*radii, radii[0]], color=colour, lw=2.4 if mine else 1.2, marker="o",
                  ms=4 if mine else 2.5, label=name + (" (ours)" if mine else ""), zorder=3 if mine else 2)  # fmt: skip
        noted = [at for at, cell in enumerate(line) if cell and cell.notes]
        plot.plot(
            [angles[at] for at in noted], [radii[at] for at in noted], "o", mfc="white", mec=colour, ms=5, zorder=4
        )
        if mine and all(radius == radius for radius in radii):
            plot.fill(angles, radii, color=colour, alpha=0.1, lw=0)
    labels = [f"{axis}\n{high:.4g}" for axis, (_, high) in zip(axes, ends, strict=True)]
    plot.set_xticks(angles, labels, fontsize=9)
    plot.set_yticks([INNER, (1 + INNER) / 2, 1], ["", "", ""])
    plot.set_ylim(0, 1.05)
    plot.tick_params(axis="x", pad=14)
    plot.grid(color="#dddddd", lw=0.7)
    plot.spines["polar"].set_color("#dddddd")
    figure.legend(frameon=False, fontsize=9, loc="lower center", ncols=3, bbox_to_anchor=(0.5, 0.035))
    about = (
        "Each axis from the lowest to the highest figure shown; the highest stands at its end. Hollow: see the notes."
    )
    figure.text(0.5, 0.012, about, ha="center", fontsize=8, color="#666666")
    figure.subplots_adjust(top=0.92, bottom=0.17)
    figure.savefig(file, dpi=140)
    plt.close(figure)


def _cell(rows: Sequence[Row], name: str, ours: bool, column: str) -> Cell | None:
    return next((row.cells.get(column) for row in rows if row.name == name and row.ours == ours), None)


def _radius(value: float, low: float, high: float) -> float:
    return 1.0 if high == low else INNER + (1 - INNER) * (value - low) / (high - low)
