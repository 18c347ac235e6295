"""The Markdown table of a grid, from its CSV alone: the same CSV gives the same bytes. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmframe.ablate.statistics import Delta, Spread, paired
from mmframe.cli.progress_line import clock

CsvRow = dict[str, str]
FACTS = {
    "parameters_total": "parameters",
    "parameters_trainable": "trainable",
    "parameters_active": "active",
    "tokens": "tokens",
    "samples": "samples",
    "flops": "FLOPs",
    "seconds": "time",
    "memory_gib": "memory, GiB",
    "gpu_memory_gib": "GPU memory, GiB",
}
_EXPLAINED = """mean ± standard deviation over seeds; Δ: mean of the differences to the baseline, run by run under the
same seed, with the 95 % interval of Student's t over these pairs; all runs are measured on the same items, and that
these are few is not in it. **Bold**: the interval leaves out zero. Active:
parameters that one token of text or image passes through (of the experts at a site, the largest one). FLOPs: of
training, forward and backward, counted on some of the steps. Time: of training steps, without validation. Memory: peak
of the process."""


@dataclass(frozen=True)
class Table:
    """A grid's results by variant.

    Args:
        rows: Of results.csv.
    """

    rows: Sequence[CsvRow]

    @property
    def grid(self) -> str:
        return self.rows[0]["grid"] if self.rows else ""

    @property
    def variants(self) -> list[str]:
        """In the order of the grid."""
        return list(dict.fromkeys(row["variant"] for row in self.rows if row["variant"]))

    @property
    def baseline(self) -> str:
        return next((row["variant"] for row in self.rows if row["baseline"] == "1"), "")

    @property
    def metrics(self) -> dict[str, str]:
        """Metric -> which is better, "lower" or "higher"; the first is the headline."""
        return {row["metric"]: row["better"] for row in self.rows if row["role"] == "metric"}

    def by_seed(self, variant: str, metric: str) -> dict[int, float]:
        """Values of the finished runs of a variant."""
        return {
            int(row["seed"]): float(row["value"])
            for row in self.rows
            if row["variant"] == variant and row["metric"] == metric and row["value"]
        }

    def spread(self, variant: str, metric: str) -> Spread:
        return Spread.of(list(self.by_seed(variant, metric).values()))

    def delta(self, variant: str, metric: str) -> Delta:
        """Difference to the baseline over the seeds that both have."""
        own, base = self.by_seed(variant, metric), self.by_seed(self.baseline, metric)
        seeds = [seed for seed in own if seed in base]
        return paired([own[seed] for seed in seeds], [base[seed] for seed in seeds])

    def items_error(self, variant: str, metric: str) -> Spread:
        """Standard error of a metric over the items that it was measured on, of each seed; none where it is unknown."""
        return self.spread(variant, f"{metric}_se")

    def unfinished(self) -> list[tuple[str, str]]:
        """(run, why) of those that are not done."""
        states = (row for row in self.rows if row["role"] == "state" and row["value"] != "1")
        return [(f"{row['variant']}, seed {row['seed']}", row["note"]) for row in states]

    def notes(self, metric: str) -> list[str]:
        """The different texts of a fact, in order."""
        return list(dict.fromkeys(row["note"] for row in self.rows if row["metric"] == metric and row["note"]))


def markdown(rows: Sequence[CsvRow]) -> str:
    """The report: what differs, what it cost, what has not finished."""
    table = Table(rows)
    lines = [
        f"# {table.grid}",
        "",
        f"Base: {', '.join(table.notes('base'))}. Budget: {', '.join(table.notes('budget'))}.",
        "",
    ]
    lines += _lines(["variant", "n", *(_headed(table)), ""], _results(table))
    lines += _over_items(table)
    lines += ["", *_lines(["variant", *_facts(table).values()], _costs(table)), "", _EXPLAINED]
    for what in ("revision", "device"):
        lines += ["", f"{what.capitalize()}: {'; '.join(table.notes(what)) or 'unknown'}."]
    lost = table.unfinished()
    if lost:
        lines += ["", "Not finished:", "", *(f"- {run}: {why}" for run, why in lost)]
    return "\n".join(lines) + "\n"


def _headed(table: Table) -> Iterable[str]:
    for metric, better in table.metrics.items():
        yield f"{metric} {'↓' if better == 'lower' else '↑'}"
        yield "Δ"


def _results(table: Table) -> Iterable[list[str]]:
    for variant in table.variants:
        counts = [table.spread(variant, metric).n for metric in table.metrics]
        cells = [variant, str(max(counts, default=0))]
        for metric in table.metrics:
            cells.append(with_sd(table.spread(variant, metric)))
            cells.append("" if variant == table.baseline else with_interval(table.delta(variant, metric)))
        yield [*cells, "baseline" if variant == table.baseline else ""]


def _over_items(table: Table) -> list[str]:
    """How well each metric is known from its items alone, a line; nothing where no metric says so."""
    told = []
    for metric in table.metrics:
        errors = [error.mean for variant in table.variants if (error := table.items_error(variant, metric)).n]
        if errors:
            told.append(f"{metric} {figure(sum(errors) / len(errors))}")
    return ["", f"Standard error over the items of one run, mean of the variants: {', '.join(told)}."] if told else []


def _facts(table: Table) -> dict[str, str]:
    known = {row["metric"] for row in table.rows}
    return {metric: head for metric, head in FACTS.items() if metric in known}


def _costs(table: Table) -> Iterable[list[str]]:
    for variant in table.variants:
        yield [variant, *(fact(metric, table.spread(variant, metric).mean) for metric in _facts(table))]


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    return [line(head), "|" + "---|" * len(head), *map(line, rows)]


def with_sd(spread: Spread) -> str:
    """e.g. 2.345 ± 0.012."""
    if not spread.n:
        return "-"
    return figure(spread.mean) + ("" if math.isnan(spread.sd) else f" ± {figure(spread.sd)}")


def with_interval(delta: Delta) -> str:
    """e.g. **-0.123 (-0.150 to -0.096)**; without an interval where there is one pair."""
    if not delta.n:
        return "-"
    if math.isnan(delta.low):
        return f"{delta.mean:+.4g}"
    text = f"{delta.mean:+.3g} ({delta.low:+.3g} to {delta.high:+.3g})"
    return f"**{text}**" if delta.decided else text


def figure(value: float) -> str:
    """Four figures that tell: 0.01234, 5.678, 91.2, 1234."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def fact(metric: str, value: float) -> str:
    """A cost as a person reads it."""
    if math.isnan(value):
        return "-"
    if metric == "seconds":
        return clock(value)
    if metric == "flops":
        return f"{value:.3g}"
    if metric.endswith("gib"):
        return f"{value:.2f}"
    return f"{value:,.0f}"
