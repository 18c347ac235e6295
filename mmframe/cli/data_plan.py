"""`mmframe data plan`: what an epoch of a recipe's mixture will look like, before anything is decoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmframe.cli.arguments import RunArguments, parse
from mmframe.errors import UserError

if TYPE_CHECKING:
    from mmframe.data.mixture_rows import MixtureRows

USAGE = """usage: mmframe data plan RECIPE [--stage S] [options] [--key=value ...]

Measures every record of the mixture (from its text and the headers of its pictures), plans the rows of an epoch, keeps
both in the cache for training, and prints what it found. Writes plan.json, plan.png and quarantine.jsonl.

options:
  --stage S       of a recipe with stages
  --epoch N       which epoch (default 0)
  --workers N     processes that measure (default: data.num_workers of the recipe)
  --fresh         measure again, whatever the cache holds
  --run-dir DIR   write into DIR/data/STAGE (default: runs/RECIPE)"""


def main(words: list[str]) -> int:
    """Plans one epoch and reports on it."""
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    fresh, words = "--fresh" in words, [word for word in words if word != "--fresh"]
    args = parse("data plan", words)
    epoch, workers = (_number(args, name) for name in ("epoch", "workers"))
    from mmframe.cli.data_job import open_job, resolved

    resolved(args)  # mistakes in the recipe are told before torch is loaded
    job = open_job(args, workers, fresh)
    rows = job.data.train_rows
    if not hasattr(rows, "plan"):
        raise UserError(f"data plan: {job.name} has {type(job.data).__name__}, which is not planned; MixtureData is")
    facts = summary(rows, job.data.row_shape.tokens, epoch or 0)
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "plan.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    draw(rows, job.data.row_shape.tokens, epoch or 0, job.folder / "plan.png")
    print(f"data plan: {job.name}, epoch {epoch or 0} of seed {job.data.seed}\n{told(facts)}")
    left = f"{job.folder / 'quarantine.jsonl'}, " if facts["left out"] else ""
    print(f"written    {left}{job.folder / 'plan.json'}, {job.folder / 'plan.png'}; kept in {rows.plan.folder}")
    return 0


def _number(args: RunArguments, name: str) -> int | None:
    for place, (key, value) in enumerate(args.overrides):
        if key == name:
            del args.overrides[place]
            if not value.isdigit():
                raise UserError(f"data plan: --{name}={value} must be a number")
            return int(value)
    return None


def summary(rows: MixtureRows, limit: int, epoch: int) -> dict[str, Any]:
    """Counts of an epoch's plan, as plain data."""
    import numpy as np

    packs, plan = rows.plan.rows(epoch), rows.plan
    draws = plan.mix.resolve(packs.draws)
    tokens = plan.tokens(draws)
    tiles, supervised = np.zeros(len(tokens), np.int64), np.zeros(len(tokens), np.int64)
    sources, left = {}, {}
    for number, part in enumerate(rows.parts):
        here = draws.part == number
        tiles[here] = part.lengths.tiles[draws.record[here]]
        supervised[here] = part.lengths.supervised[draws.record[here]]
        bad: dict[str, int] = dict(part.lengths.reasons())
        unused = len(part.source) - plan.mix.sizes[number]
        if unused > sum(bad.values()):
            bad["too long"] = unused - sum(bad.values())
        for reason, count in bad.items():
            left[reason] = left.get(reason, 0) + count
        mine = tokens[here]
        sources[part.name] = {
            "records": len(part.source),
            "used": plan.mix.sizes[number],
            "visits": int(here.sum()),
            "tokens": int(mine.sum()),
            "median tokens": int(np.median(mine)) if len(mine) else 0,
            "most tokens": int(mine.max(initial=0)),
            "tiles": int(tiles[here].sum()),
            "left out": bad,
        }
    total, image = int(tokens.sum()), int(tiles.sum()) * rows.encoder.embedder.per_tile
    return {
        "epoch": epoch,
        "rows": len(packs),
        "row tokens": limit,
        "fill": total / (limit * len(packs)),
        "records a row": len(packs.draws) / len(packs),
        "tokens": {"all": total, "image": image, "other": total - image, "learnt": int(supervised.sum())},
        "tiles": int(tiles.sum()),
        "left out": left,
        "sources": sources,
    }


def told(facts: dict[str, Any]) -> str:
    """The summary as a person reads it."""
    lines = [
        f"{'source':<16}{'records':>12}{'used':>12}{'visits':>12}{'tokens':>14}{'median':>8}{'most':>8}{'tiles':>12}"
    ]
    for name, s in facts["sources"].items():
        lines.append(
            f"{name[:15]:<16}{s['records']:>12,}{s['used']:>12,}{s['visits']:>12,}{s['tokens']:>14,}"
            f"{s['median tokens']:>8,}{s['most tokens']:>8,}{s['tiles']:>12,}"
        )
    t = facts["tokens"]
    left = ", ".join(f"{count:,} {reason}" for reason, count in facts["left out"].items()) or "nothing"
    lines += [
        f"rows       {facts['rows']:,} of at most {facts['row tokens']:,} tokens, {100 * facts['fill']:.1f} % full, "
        f"{facts['records a row']:.1f} records a row",
        f"tokens     {t['all']:,}: {100 * t['image'] / t['all']:.0f} % image, {100 * t['other'] / t['all']:.0f} % text "
        f"and boundaries; {100 * t['learnt'] / t['all']:.1f} % of all are learnt",
        f"tiles      {facts['tiles']:,}",
        f"left out   {left}",
    ]
    return "\n".join(lines)


def draw(rows: MixtureRows, limit: int, epoch: int, file: Path) -> None:
    """Histograms: tokens of a record by source, tokens of a row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    packs, plan = rows.plan.rows(epoch), rows.plan
    draws = plan.mix.resolve(packs.draws)
    tokens = plan.tokens(draws)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    bins = np.linspace(0, int(tokens.max()) + 1, 60)
    shown = [tokens[draws.part == n] for n in range(len(rows.parts))]
    left.hist(shown, bins=bins, stacked=True, label=[f"{p.name} ({len(s):,})" for p, s in zip(rows.parts, shown)])  # noqa: B905
    left.set(xlabel="tokens of a record", ylabel="records", title=f"{len(tokens):,} records of epoch {epoch}")
    left.legend(fontsize=8)
    sums = np.add.reduceat(tokens, packs.starts[:-1])
    right.hist(sums, bins=np.linspace(0, limit, 60), color="tab:green")
    right.axvline(limit, color="black", linewidth=0.8)
    right.set(
        xlabel="tokens of a row", ylabel="rows", yscale="log",
        title=f"{len(packs):,} rows, {100 * tokens.sum() / (limit * len(packs)):.1f} % of {limit:,} tokens full",
    )  # fmt: skip
    figure.savefig(file, dpi=110)
    plt.close(figure)
