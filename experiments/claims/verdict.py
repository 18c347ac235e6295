"""The rule by which a claim is reproduced or not. It was fixed before the runs; since then it was made stricter once.

A comparison is *reproduced* if the 95 % interval of the paired difference over seeds (Student's t) leaves out zero in
the claimed direction, *not reproduced* if it leaves it out in the other, else *undecided*; it is *not run* with fewer
than three pairs. A claim of several parts is reproduced if each part is, and not reproduced if one is not; before
2026-11-26, after the first runs, its first comparison alone decided. Nothing is corrected for the number of
comparisons: one in twenty of those where nothing is different will still be decided. Of several variants to compare
with the best is taken after the fact, which is careful with "reproduced" and generous with "not reproduced".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from experiments.claims.claims import Claim, Comparison
from mmframe.ablate.statistics import Delta, Spread, paired
from mmframe.ablate.table import Table

Word = Literal["reproduced", "not reproduced", "undecided", "not run"]
LEAST_PAIRS = 3


@dataclass(frozen=True)
class Finding:
    """What came of a comparison.

    Args:
        comparison: Which.
        verdict: By the rule.
        than: The variant that it was compared with, of those given.
        better_is: "lower" or "higher".
        difference: `better` minus `than`, paired by seed.
        better_mean: Over all seeds of `better`.
        than_mean: Over all seeds of `than`.
    """

    comparison: Comparison
    verdict: Word
    than: str = ""
    better_is: str = "lower"
    difference: Delta | None = None
    better_mean: Spread | None = None
    than_mean: Spread | None = None


def decide(difference: Delta, better_is: str) -> Word:
    """The rule for one paired difference."""
    if difference.n < LEAST_PAIRS:
        return "not run"
    if not difference.decided:
        return "undecided"
    claimed = difference.high < 0 if better_is == "lower" else difference.low > 0
    return "reproduced" if claimed else "not reproduced"


def find(comparison: Comparison, table: Table | None) -> Finding:
    """What a grid's results say of a comparison."""
    if table is None or comparison.metric not in table.metrics:
        return Finding(comparison, "not run")
    better_is = table.metrics[comparison.metric]
    there = [variant for variant in comparison.than if table.by_seed(variant, comparison.metric)]
    if not there or not table.by_seed(comparison.better, comparison.metric):
        return Finding(comparison, "not run", better_is=better_is)
    sign = 1 if better_is == "lower" else -1
    than = min(there, key=lambda variant: sign * table.spread(variant, comparison.metric).mean)
    own, other = (table.by_seed(variant, comparison.metric) for variant in (comparison.better, than))
    seeds = [seed for seed in own if seed in other]
    difference = paired([own[seed] for seed in seeds], [other[seed] for seed in seeds])
    return Finding(
        comparison,
        decide(difference, better_is),
        than,
        better_is,
        difference,
        table.spread(comparison.better, comparison.metric),
        table.spread(than, comparison.metric),
    )


def findings(claim: Claim, table: Table | None) -> Sequence[Finding]:
    """All comparisons of a claim."""
    return [find(comparison, table) for comparison in claim.comparisons]


def verdict(claim: Claim, found: Sequence[Finding]) -> Word:
    """The verdict of a claim from its findings: those that decide, together."""
    words = [finding.verdict for finding in found[: claim.deciding]]
    if words[0] == "not run" or "not reproduced" in words:
        return words[0] if words[0] == "not run" else "not reproduced"
    return "reproduced" if set(words) == {"reproduced"} else "undecided"
