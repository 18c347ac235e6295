"""Pictures of a kernels_*.json: how every way stands to the kernels, and the kernels to their floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

RIVALS = ("slices", "grouped", "index", "mask", "blend", "kernels, recomputing")


def draw(figures: dict[str, Any], stem: Path) -> list[Path]:
    """Writes STEM_rivals.png and STEM_floor.png.

    Args:
        figures: What experiments.bench.kernels measured.
        stem: Path without a suffix.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = {
        f"{group}: {name}": row
        for group in ("prefill", "decoding", "training")
        for name, row in figures.get(group, {}).items()
    }
    paths = []
    height = 1.2 + 0.42 * len(rows)

    figure, axes = plt.subplots(figsize=(9, height), layout="constrained")
    names = list(rows)[::-1]
    present = [rival for rival in RIVALS if any(f"{rival} over kernels" in row for row in rows.values())]
    width = 0.8 / max(1, len(present))
    for number, rival in enumerate(present):
        key = f"{rival} over kernels"
        bars = [(i + 0.4 - width * (number + 0.5), rows[n][key]) for i, n in enumerate(names) if key in rows[n]]
        axes.barh([place for place, _ in bars], [value for _, value in bars], width, label=rival)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(
        "time over the fused kernels' time (right of the line: the kernels are faster);\n"
        "prefill and training launched by Python, decoding in a CUDA graph"
    )
    axes.set_title(figures["device"])
    axes.legend(fontsize=8)
    paths.append(stem.with_name(stem.name + "_rivals.png"))
    figure.savefig(paths[-1], dpi=110)
    plt.close(figure)

    figure, axes = plt.subplots(figsize=(9, height), layout="constrained")
    eager, graph = "kernels, share of the floor", "kernels in a graph, share of the floor"
    axes.barh(range(len(names)), [100 * rows[name].get(graph, rows[name][eager]) for name in names], 0.6)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 100)
    axes.set_xlabel(
        "share of the floor, % (bytes or operations at the rates that this device reached in the same run);\n"
        "in a CUDA graph where it was measured in one"
    )
    axes.set_title(figures["device"])
    paths.append(stem.with_name(stem.name + "_floor.png"))
    figure.savefig(paths[-1], dpi=110)
    plt.close(figure)
    return paths
