"""One report over all claims, from one CSV: what the paper says, what came of it here, and the verdict of the rule."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.claims.claims import CLAIMS, Claim
from experiments.claims.verdict import Finding, findings, verdict
from mmframe.ablate.collect import COLUMNS, read_csv, write_csv
from mmframe.ablate.table import CsvRow, Table, fact, figure, with_sd
from mmframe.cli.run_dir import write_atomically

RESULTS = Path(__file__).resolve().parents[1] / "results"
_COLUMNS = ("claim", *COLUMNS)
_RULE = """Rule (`experiments/claims/verdict.py`), fixed before the runs and made stricter after the first of them: a
comparison is **reproduced** if the 95 % interval (Student's t) of the difference, paired by seed, leaves out
zero in the claimed direction, **not reproduced** if it leaves it out in the other, else **undecided**. A
claim of several parts needs all of them. Nothing is corrected for the number of comparisons. Of several
variants to compare with the best one is taken, after the fact. An interval is over seeds: that the held-out
records are few (30 to 60 of each kind) is not in it, and where a variant's frozen LLM gives the same text
score under every seed, only the other variant varies. "Items, s.e." is the standard error that the records
alone give a variant's score, where it was kept; both variants are asked about the same ones, so that of their
difference is smaller."""
_SETTING = """SmolLM2-135M, pictures of 64 px, minutes of training: the signs of differences are compared with the
paper's, never their sizes. All variants of a seed share the warm-started patch embedder of that seed
(`recipes/warm_start.yaml`, ours, not EViP's), the order of the data and the held-out records; the pair of monolithic
and modular models learns its own, from the same pictures. `held_out.nll` is nats for an answer token. The paper's
numbers are partly taken from others who quote its tables."""


def write_results(preset: str, found: Mapping[str, Sequence[CsvRow]], folder: Path) -> Path:
    """All rows of all grids as one CSV; claims that were not run this time keep the rows of an earlier run."""
    file = folder / f"claims_{preset}.csv"
    rows = {name: list(rows) for name, rows in (read_results(file) if file.is_file() else {}).items()}
    rows |= {name: list(new) for name, new in found.items() if new}
    write_csv(file, _COLUMNS, [{"claim": name, **row} for name, own in rows.items() for row in own])
    return file


def read_results(file: Path) -> dict[str, list[CsvRow]]:
    """Claim -> rows of its grid.

    Raises:
        UserError: no such file, or another one.
    """
    found: dict[str, list[CsvRow]] = {}
    for row in read_csv(file, _COLUMNS):
        found.setdefault(row.pop("claim"), []).append(row)
    return found


def write_report(preset: str, found: Mapping[str, Sequence[CsvRow]], folder: Path) -> list[Path]:
    """claims_PRESET.md, .json and a figure for each claim that was run; the files written."""
    from experiments.claims.draw import draw_claim, draw_overview

    tables = {claim.name: Table(found[claim.name]) if found.get(claim.name) else None for claim in CLAIMS}
    decided = {claim.name: findings(claim, tables[claim.name]) for claim in CLAIMS}
    name = f"claims_{preset}"
    written = [folder / f"{name}.md", folder / f"{name}.json", folder / f"{name}.png"]
    write_atomically(written[0], markdown(preset, tables, decided))
    write_atomically(written[1], json.dumps(as_json(preset, tables, decided), indent=1) + "\n")
    draw_overview(written[2], decided)
    for claim in CLAIMS:
        if (table := tables[claim.name]) is not None:
            written.append(folder / f"{name}_{claim.name}.png")
            draw_claim(written[-1], claim, table)
    return written


def markdown(preset: str, tables: Mapping[str, Table | None], decided: Mapping[str, Sequence[Finding]]) -> str:
    """The report."""
    lines = [
        f"# The paper's claims in miniature: {preset}",
        "",
        f"`python -m experiments.claims --preset {preset}`",
        "",
    ]
    lines += [_SETTING, "", _RULE, "", f"![all comparisons](claims_{preset}.png)", ""]
    lines += ["| claim | the paper | here | verdict |", "|---|---|---|---|"]
    for claim in CLAIMS:
        found = decided[claim.name]
        here = "; ".join(told(each) for each in found[: claim.deciding]) if tables[claim.name] else "not run"
        lines.append(f"| {claim.statement} | {claim.paper} | {here} | **{verdict(claim, found)}** |")
    for claim in CLAIMS:
        lines += _section(preset, claim, tables[claim.name], decided[claim.name])
    return "\n".join(lines) + "\n"


def _section(preset: str, claim: Claim, table: Table | None, found: Sequence[Finding]) -> list[str]:
    lines = ["", f"## {claim.name}: {verdict(claim, found)}", "", claim.statement, "", f"The paper: {claim.paper}."]
    lines += [f"Limits: {claim.limits}"] if claim.limits else []
    if table is None:
        return [*lines, "", f"Not run in this preset (`{claim.grid}`)."]
    lines += ["", f"![{claim.name}](claims_{preset}_{claim.name}.png)", ""]
    lines += ["| comparison | metric | difference (95 % interval) | pairs | items, s.e. | verdict |"]
    lines.append("|---" * 6 + "|")
    for finding in found:
        what = f"{finding.comparison.says}: {finding.comparison.better} - {finding.than or '...'}"
        pairs = finding.difference.n if finding.difference else 0
        metric = f"{finding.comparison.metric}, {finding.better_is} is better"
        items = _items_error(table, finding)
        lines.append(f"| {what} | {metric} | {_difference(finding)} | {pairs} | {items} | {finding.verdict} |")
    facts = ("parameters_trainable", "tokens", "flops", "seconds")
    lines += ["", f"| variant | {' | '.join(table.metrics)} | trainable | tokens | FLOPs | time |"]
    lines.append("|---" * (len(table.metrics) + 5) + "|")
    for variant in table.variants:
        cells = [with_sd(table.spread(variant, metric)) for metric in table.metrics]
        cells += [fact(name, table.spread(variant, name).mean) for name in facts]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    if lost := table.unfinished():
        lines += ["", "Not finished: " + "; ".join(f"{run} ({why})" for run, why in lost) + "."]
    return [*lines, "", f"Device: {'; '.join(table.notes('device')) or 'unknown'}."]


def _items_error(table: Table, finding: Finding) -> str:
    """Standard error of the metric over its items, the larger of the two variants'."""
    errors = [
        table.items_error(variant, finding.comparison.metric) for variant in (finding.comparison.better, finding.than)
    ]
    known = [error.mean for error in errors if error.n]
    return figure(max(known)) if known else "-"


def told(finding: Finding) -> str:
    """A finding on one line."""
    if finding.difference is None or finding.better_mean is None or finding.than_mean is None:
        return "not run"
    return (
        f"{finding.comparison.metric}: {finding.comparison.better} {with_sd(finding.better_mean)}, {finding.than} "
        f"{with_sd(finding.than_mean)}; difference {_difference(finding)}, {finding.difference.n} seeds"
    )


def _difference(finding: Finding) -> str:
    delta = finding.difference
    if delta is None:
        return "-"
    if delta.n < 2:
        return f"{delta.mean:+.3g}"
    return f"{delta.mean:+.3g} ({delta.low:+.3g} to {delta.high:+.3g})"


def as_json(
    preset: str, tables: Mapping[str, Table | None], decided: Mapping[str, Sequence[Finding]]
) -> dict[str, Any]:
    """The report for programs."""
    devices = {note: None for table in tables.values() if table for note in table.notes("device")}
    return {
        "command": f"python -m experiments.claims --preset {preset}",
        "device": list(devices),
        "when": time.strftime("%Y-%m-%d"),
        "claims": {claim.name: _claim_json(claim, decided[claim.name]) for claim in CLAIMS},
    }


def _claim_json(claim: Claim, found: Sequence[Finding]) -> dict[str, Any]:
    return {
        "statement": claim.statement,
        "paper": claim.paper,
        "verdict": verdict(claim, found),
        "comparisons": [
            {
                "says": finding.comparison.says,
                "metric": finding.comparison.metric,
                "better": finding.comparison.better,
                "than": finding.than,
                "verdict": finding.verdict,
                **(_numbers(finding)),
            }
            for finding in found
        ],
    }


def _numbers(finding: Finding) -> dict[str, Any]:
    delta = finding.difference
    if delta is None or delta.n < 2:
        return {}
    return {"difference": delta.mean, "interval": [delta.low, delta.high], "pairs": delta.n}
