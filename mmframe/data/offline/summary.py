"""What is about all sources of a folder: their licences, and a `data:` section that mixes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mmframe.data.offline.source import OfflineSource

Built = Mapping[OfflineSource, dict[str, Any]]


def write_summary(folder: Path, built: Built) -> None:
    """Writes `LICENCES.md` and `mixture.yaml`, whole or not at all.

    Args:
        folder: Where the sources lie.
        built: The sources and what their `source.json` says, in the order of the table.
    """
    for name, text in (("LICENCES.md", licences(built)), ("mixture.yaml", mixture(folder.resolve(), built))):
        beside = folder / f".{name}"
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, folder / name)


def licences(built: Built) -> str:
    """A table for people."""
    lines = [
        "# Where this data comes from",
        "",
        "Made by `mmframe data offline` out of the packages below; each keeps its own licence. Read it before you pass "
        "anything on.",
        "Pictures that look the same stand once; those with transparency were put on white.",
        "",
        "| source | what it is | packages and versions | licence | train / val / test | MB |",
        "|---|---|---|---|---|---|",
    ]
    for source, known in built.items():
        counts = " / ".join(f"{count:,}" for count in known["records"].values())
        kind = "pictures" if source.pictures else "texts"
        cells = [
            known["name"], known["about"], "; ".join(known["packages"]), known["licence"], f"{counts} {kind}",
            f"{known['bytes'] / 1e6:.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def mixture(folder: Path, built: Built) -> str:
    """A recipe's `data:` section of the training splits, and the val splits for validation."""
    train = {source.name: _source(folder, source, "train") for source in built}
    val = {source.name: _source(folder, source, "val") for source in built if source.pictures}
    section = {"data": {"class_path": "MixtureData", "init_args": {"sources": train, "val": val}}}
    head = "# The sources of this folder as one mixture; `repeat` of a source is how often an epoch goes through it.\n"
    return head + yaml.safe_dump(section, sort_keys=False, width=120)


def _source(folder: Path, source: OfflineSource, split: str) -> dict[str, Any]:
    if source.pictures is None:
        return {"class_path": "TextCorpus", "init_args": {"texts": str(folder / source.name / f"{split}.jsonl")}}
    arguments = {"shards": str(folder / source.name / f"{split}-*.tar")}
    if source.prompts:
        arguments["prompts"] = source.prompts
    return {"class_path": "TarShards", "init_args": arguments}
