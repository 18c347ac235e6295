"""`mmframe data show`: a contact sheet of what a model will be given."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from mmframe.cli.arguments import RunArguments, parse
from mmframe.errors import UserError, suggest

USAGE = """usage: mmframe data show SOURCE [options] [--key=value ...]

Draws rows as the model gets them: tiles, every token, coloured by its kind, and which tokens are learnt.

SOURCE            a recipe, or data: a .jsonl, .json, .tar, .parquet or .txt file, or a folder of pictures

options:
  --stage S       of a recipe with stages
  --source NAME   only this source of the recipe's mixture
  --count N       how many records (default 12), of how many rows that takes
  --seed N        which rows (default 0)
  --out FILE      picture to write (default: runs/RECIPE/data/STAGE/show.png, or SOURCE.show.png here)
data alone is shown with 448-px tiles of 256 tokens and SmolLM2's tokenizer; of the recipe's keys these may be set:
  --max_tiles=6 --prompts=describe --max_tokens=4096"""


def main(words: list[str]) -> int:
    """Draws the sheet and says where it is."""
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    args = parse("data show", words)
    options = {name: _take(args, name) for name in ("source", "count", "seed", "out")}
    if not args.configs:
        raise UserError("data show: which data? give a recipe, or a file of data")
    count, seed = (_number(name, options[name], default) for name, default in (("count", 12), ("seed", 0)))
    what = args.configs[0]
    if len(args.configs) == 1 and _is_data(what):
        data, default = _of_file(what, args), Path(f"{Path(what).name}.show.png")
    else:
        from mmframe.cli.data_job import open_job

        if options["source"]:
            data, default = _of_source(args, options["source"])
        else:
            job = open_job(args)
            data, default = job.data, job.folder / "show.png"
    from mmframe.data.sheet import contact_sheet

    rows = data.train_rows
    chosen = random.Random(seed).sample(range(len(rows)), min(count, len(rows)))
    samples, shown = [], 0
    for index in chosen:
        if shown < count:
            samples.append(rows.sample(0, index))
            shown += samples[-1].num_records
    out = Path(options["out"]) if options["out"] else default
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet([sample for sample in samples if len(sample)], data.processor, count).save(out)
    left = [bad.message for sample in samples for bad in sample.left_out]
    for message in left[:5]:
        print(f"left out: {message}")
    print(f"data show: {min(shown, count)} records, of {len(samples)} rows out of {len(rows):,}: {out}")
    return 0


def _of_source(args: RunArguments, name: str) -> tuple[Any, Path]:
    """The recipe's data with one source only."""
    from mmframe.cli.data_job import open_job, resolved

    _, config = resolved(args)
    sources = config["data"].get("init_args", {}).get("sources")
    if not isinstance(sources, dict):
        raise UserError(f"data show: --source: {config['data'].get('class_path')} is no mixture of sources")
    if name not in sources:
        raise UserError(f"data show: no source is called {name!r}; {suggest(name, sources)}")
    args.overrides.append(("data.sources", _yaml({name: sources[name]})))
    job = open_job(args)
    return job.data, job.folder / f"show-{name}.png"


def _yaml(value: Any) -> str:
    import json

    return json.dumps(value)


def _is_data(word: str) -> bool:
    path = Path(word).expanduser()
    return path.exists() and path.suffix not in (".yaml", ".yml")


def _of_file(word: str, args: RunArguments) -> Any:
    """A mixture of one file or folder alone."""
    from mmframe import registry
    from mmframe.data.guess import guessed_source
    from mmframe.data.mixture import MixtureData
    from mmframe.loading import build
    from mmframe.processing import ChatProcessor
    from mmframe.tile_tokens import TileGeometry

    path = Path(word).expanduser()
    source = guessed_source(str(path), "data show")
    tokenizer = build({"class_path": registry.place(registry.get("tokenizer", "SmolLM2Tokenizer"))})
    processor = ChatProcessor(tokenizer, "chatml")
    geometry: Any = TileGeometry.plain(448, 16, 16)
    settings: dict[str, Any] = {"max_tokens": 8192, "packing": False, "max_bad_fraction": 1.0, "prompts": "describe"}
    for key, value in args.overrides:
        if key not in ("max_tiles", "prompts", "max_tokens"):
            raise UserError(
                f"data show: unknown option --{key}; {suggest(key, ('max_tiles', 'prompts', 'max_tokens'))}"
            )
        settings[key] = int(value) if value.isdigit() else value
    return MixtureData({path.stem: source}, **settings).connect(processor, geometry)


def _take(args: RunArguments, name: str) -> str | None:
    for place, (key, value) in enumerate(args.overrides):
        if key == name:
            del args.overrides[place]
            return value
    return None


def _number(name: str, given: str | None, default: int) -> int:
    if given is not None and not given.isdigit():
        raise UserError(f"data show: --{name}={given} must be a number")
    return default if given is None else int(given)
