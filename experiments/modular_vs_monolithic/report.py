"""One report of the pair: quality by task, what it cost, and the figure of quality against cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mmframe.ablate.statistics import paired
from mmframe.ablate.table import CsvRow, Table, fact, with_interval, with_sd

FACTS = {
    "parameters_total": "parameters",
    "parameters_trainable": "trainable",
    "parameters_active": "active",
    "flops": "training FLOPs",
    "tokens": "tokens",
    "memory_gib": "training memory, GiB",
    "seconds": "training time",
}
EQUAL_FLOPS = "modular_equal_flops"
_HONEST = """The modular encoder starts from random weights: no pretrained vision encoder can be had where this runs,
and the papers' modular models have one. The experts start as copies of the LLM. So this says which of the two is the
better use of equal data, parameters and FLOPs without vision pre-training, and nothing about the papers' models.
Equal data: `monolithic` and `modular`; equal FLOPs: `modular_equal_flops` (the FLOPs column is counted, not assumed).
Both learnt the words of pictures first (s0_warm_start, ours) from the same pictures; the LLM is frozen in both."""


def markdown(preset: str, rows: Sequence[CsvRow], speed: Mapping[str, Any]) -> str:
    """The report."""
    table = Table(rows)
    lines = [f"# Monolithic against modular: {preset}", ""]
    lines += [f"`python -m experiments.modular_vs_monolithic --preset {preset}`", "", _HONEST, ""]
    lines += [f"![quality against cost](modular_vs_monolithic_{preset}.png)", "", "## Quality", ""]
    lines += [f"| variant | {' | '.join(table.metrics)} |", "|---" * (1 + len(table.metrics)) + "|"]
    for variant in table.variants:
        cells = [with_sd(table.spread(variant, metric)) for metric in table.metrics]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    lines += [
        "",
        "Mean ± standard deviation over seeds. Monolithic minus the other, paired by seed, 95 % interval:",
        "",
    ]
    lines += [f"| against | {' | '.join(table.metrics)} |", "|---" * (1 + len(table.metrics)) + "|"]
    for variant in table.variants[1:]:
        cells = [with_interval(_less(table, variant, metric)) for metric in table.metrics]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    lines += ["", "## Cost of training", "", f"| variant | {' | '.join(FACTS.values())} |"]
    lines.append("|---" * (1 + len(FACTS)) + "|")
    for variant in table.variants:
        lines.append(f"| {variant} | {' | '.join(fact(name, table.spread(variant, name).mean) for name in FACTS)} |")
    lines += ["", *_equal_flops(table), *_inference(speed)]
    if lost := table.unfinished():
        lines += ["", "Not finished: " + "; ".join(f"{run} ({why})" for run, why in lost) + "."]
    return "\n".join([*lines, "", f"Device: {speed.get('device', 'unknown')}."]) + "\n"


def _equal_flops(table: Table) -> list[str]:
    """Whether the variant that is to cost as much as the baseline does, within a twentieth."""
    costs = [table.spread(variant, "flops") for variant in (EQUAL_FLOPS, table.baseline)]
    if not all(cost.n for cost in costs):
        return []
    over = costs[0].mean / costs[1].mean
    told = f"Training FLOPs of `{EQUAL_FLOPS}` over those of `{table.baseline}`: {over:.3f}"
    equal = 0.95 <= over <= 1.05
    return [f"{told}." if equal else f"{told}: **not equal**; its steps in pair.yaml are to be set anew.", ""]


def _less(table: Table, variant: str, metric: str) -> Any:
    own, other = table.by_seed(table.baseline, metric), table.by_seed(variant, metric)
    seeds = [seed for seed in own if seed in other]
    return paired([own[seed] for seed in seeds], [other[seed] for seed in seeds])


def _inference(speed: Mapping[str, Any]) -> list[str]:
    if "modular over monolithic, seconds" not in speed:
        return ["## Cost of inference", "", "Not measured."]
    lines = [
        "## Cost of inference",
        "",
        "fp32, both models take turns; ratios are medians over rounds (smallest-largest). Beyond: the most that a",
        "prompt takes beside the weights up to its first token, its cache included.",
    ]
    heads = ("picture", "model", "prompt", "prefill FLOPs", "first token, s", "tokens/s", "weights, GiB", "beyond, MiB")
    lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    ratios = speed["modular over monolithic, seconds"]
    for picture in ratios:
        for half in ("monolithic", "modular"):
            found = speed[half][picture]
            lines.append(
                f"| {picture} | {half} | {found['prompt tokens']} | {found['prefill FLOPs']:.3g} | "
                f"{found['seconds to first token']:.4f} | {found['tokens per second']:.1f} | "
                f"{speed[half]['GiB of weights']:.2f} | {found['MiB beyond the weights']:.1f} |"
            )
    lines += ["", "Modular over monolithic, seconds:", ""]
    for picture, over in ratios.items():
        told = (f"{what} {r['median']:.2f} ({r['min']:.2f}-{r['max']:.2f})" for what, r in over.items())
        lines.append(f"- {picture}: {', '.join(told)}")
    return lines


def draw(file: Path, rows: Sequence[CsvRow]) -> None:
    """Held-out loss and exact answers against training FLOPs: a curve for each half, a dot for each run."""
    table = Table(rows)
    metrics = [metric for metric in (next(iter(table.metrics)), "questions.open") if metric in table.metrics]
    figure, axes = plt.subplots(1, len(metrics), figsize=(5 * len(metrics), 3.8), layout="constrained", squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for half, colour in (("monolithic", "C0"), ("modular", "C1")):
            points = []
            for variant in table.variants:
                if variant.partition("_")[0] == half and table.spread(variant, metric).n:
                    cost = table.spread(variant, "flops").mean
                    points.append((cost, table.spread(variant, metric).mean))
                    values = table.by_seed(variant, metric)
                    costs = table.by_seed(variant, "flops")
                    axis.scatter([costs.get(s, cost) for s in values], list(values.values()), 10, colour, alpha=0.5)
            if points:
                axis.plot(*zip(*sorted(points), strict=True), "o-", color=colour, label=half)
        axis.set_xlabel("training FLOPs")
        axis.set_ylabel(f"{metric} ({table.metrics[metric]} is better)")
        axis.legend()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def as_json(preset: str, rows: Sequence[CsvRow], speed: Mapping[str, Any]) -> str:
    """The report for programs."""
    table = Table(rows)
    quality = {
        variant: {metric: vars(table.spread(variant, metric)) for metric in (*table.metrics, *FACTS)}
        for variant in table.variants
    }
    command = f"python -m experiments.modular_vs_monolithic --preset {preset}"
    return json.dumps({"command": command, "variants": quality, "inference": dict(speed)}, indent=1) + "\n"
