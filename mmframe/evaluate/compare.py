"""Two models on the same examples: the difference of each task with a paired interval. No torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from mmframe.ablate.statistics import Delta, t_quantile
from mmframe.errors import UserError
from mmframe.evaluate.answer_rows import AnswerRow, answer_score, read_answers
from mmframe.evaluate.collect import differing, find_results
from mmframe.evaluate.record import Result
from mmframe.evaluate.report import Footnotes, aligned

EXPLAINED = """Δ: B - A of the task's own figure. Δ of answers: mean of the paired differences of single answers, in
points, with its 95 % interval; answers about one picture are one cluster. **Bold**: the interval leaves out zero.
better in A, better in B: answers that only one of them got right, or got more right; of a reading with errors counted
by character, right is without an error."""
_LARGE = 1000  # degrees of freedom from which on t is taken for normal: 1.962 against 1.960


def compared(one: Path, other: Path) -> str:
    """Markdown: every task that both have.

    Raises:
        UserError: they have no task in common, or several results of one.
    """
    first, second = _by_task(one), _by_task(other)
    tasks = [task for task in first if task in second]
    if not tasks:
        told = f"{', '.join(first)} and {', '.join(second)}"
        raise UserError(f"evaluate report --diff: {one} and {other} have no task in common: {told}")
    notes, rows = Footnotes(), []
    for task in tasks:
        rows.append(_line(task, first[task], second[task], notes))
    head = ["task", "figure", "A", "B", "Δ", "Δ of answers", "pairs", "better in A", "better in B"]
    names = [next(iter(results.values()))[1].model.get("name", "?") for results in (first, second)]
    lines = [f"A: {names[0]} ({one})", f"B: {names[1]} ({other})", "", *aligned(head, rows), "", EXPLAINED]
    lines += ["", *notes.lines()] if notes.texts else []
    for place, mine, theirs in ((one, first, second), (other, second, first)):
        alone = [task for task in mine if task not in theirs]
        lines += ["", f"Only in {place}: {', '.join(alone)}"] if alone else []
    return "\n".join(lines) + "\n"


def _by_task(place: Path) -> dict[str, tuple[Path, Result]]:
    found: dict[str, tuple[Path, Result]] = {}
    for folder, result in find_results([place])[0]:
        if result.task in found:
            raise UserError(
                f"evaluate report --diff: {place} has two results of {result.task}, {found[result.task][0]} and "
                f"{folder}; give the folder of one model"
            )
        found[result.task] = (folder, result)
    return found


def _line(task: str, one: tuple[Path, Result], other: tuple[Path, Result], notes: Footnotes) -> list[str]:
    (folder, a), (folder_b, b) = one, other
    if a.data_fingerprint != b.data_fingerprint:
        return [task + notes.mark(["other data: the scores cannot be compared"]), a.headline,
                f"{a.score:.2f}", f"{b.score:.2f}", *"-----"]  # fmt: skip
    if a.headline != b.headline or a.metric["name"] != b.metric["name"]:
        why = f"another figure: {a.metric['name']} {a.headline} and {b.metric['name']} {b.headline}"
        return [task + notes.mark([why]), a.headline, f"{a.score:.2f}", f"{b.score:.2f}", *"-----"]
    told = [f"not measured alike: they differ in {', '.join(keys)}"] if (keys := differing(a, b)) else []
    pairs = Pairs.of(read_answers(folder), read_answers(folder_b), a.headline)
    if pairs.unpaired:
        told.append(f"{pairs.unpaired:,} examples were answered by one of them only and are in no pair")
    cells = [a.headline, f"{a.score:.2f}", f"{b.score:.2f}", f"{b.score - a.score:+.2f}"]
    if not pairs.differences:
        told.append("the figure is made of all answers at once: no interval")
        return [task + notes.mark(told), *cells, *"----"]
    better = [f"{sum(d < 0 for d in pairs.differences):,}", f"{sum(d > 0 for d in pairs.differences):,}"]
    shown = _with_interval(clustered(pairs.differences, pairs.clusters))
    return [task + notes.mark(told), *cells, shown, f"{len(pairs.differences):,}", *better]


@dataclass(frozen=True)
class Pairs:
    """Answers of two models to the same examples.

    Attributes:
        differences: B - A of each, in points (a right answer against a wrong one: 100); none where the metric scores no
            single answer.
        clusters: what each is about; those about the same pictures are not independent.
        unpaired: examples that only one has.
    """

    differences: list[float]
    clusters: list[Hashable]
    unpaired: int

    @classmethod
    def of(cls, one: dict[str, AnswerRow], other: dict[str, AnswerRow], headline: str) -> Pairs:
        unpaired = len(one.keys() ^ other.keys())
        scores = {
            key: (answer_score(one[key], headline), answer_score(other[key], headline)) for key in one.keys() & other
        }
        if any(value is None for pair in scores.values() for value in pair):
            return cls([], [], unpaired)
        differences: list[float] = []
        clusters: list[Hashable] = []
        for key in (key for key in one if key in scores):
            before, after = scores[key]
            differences.append(100 * ((after or 0.0) - (before or 0.0)))
            pictures = one[key].get("images") or other[key].get("images")
            clusters.append(tuple(pictures) if pictures else ("example", key))
        return cls(differences, clusters, unpaired)


def clustered(differences: Sequence[float], clusters: Sequence[Hashable], confidence: float = 0.95) -> Delta:
    """Mean of paired differences with a t interval over clusters (cluster-robust standard error of a mean).

    With every cluster of size one it is the usual paired t interval.

    Args:
        differences: One a pair.
        clusters: Of each; differences in one cluster may depend on one another.
        confidence: Of the interval.
    """
    n = len(differences)
    mean = math.fsum(differences) / n
    sums: dict[Hashable, list[float]] = defaultdict(list)
    for difference, cluster in zip(differences, clusters, strict=True):
        sums[cluster].append(difference - mean)
    count = len(sums)
    if count < 2:
        return Delta(mean, math.nan, math.nan, n)
    error = math.sqrt(math.fsum(math.fsum(part) ** 2 for part in sums.values()) * count / (count - 1)) / n
    p = (1 + confidence) / 2
    half = error * (t_quantile(p, count - 1) if count <= _LARGE else NormalDist().inv_cdf(p))
    return Delta(mean, mean - half, mean + half, n)


def _with_interval(delta: Delta) -> str:
    if math.isnan(delta.low):
        return f"{delta.mean:+.2f}"
    text = f"{delta.mean:+.2f} ({delta.low:+.2f} to {delta.high:+.2f})"
    return f"**{text}**" if delta.decided else text
