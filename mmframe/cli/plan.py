"""`mmframe plan`: what training a recipe takes, before anything is trained."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from mmframe.cli.arguments import RunArguments, parse
from mmframe.cli.check import check
from mmframe.cli.recipe import load_recipe
from mmframe.errors import UserError, suggest

USAGE = """usage: mmframe plan --config RECIPE --gpus N --gpu NAME [--stage S] [options] [--key=value ...]

Runs one training step of each stage on tensors without numbers (nothing is loaded, no GPU is needed) and prints
parameters, operations, memory of each strategy, time, data volume and the roofline of generation.

options:
  --gpus N             how many; the recipe's global batch is dealt out over them (default: 1)
  --gpu NAME           a100, h100, h200, cpu (one core): mmframe/planning/gpus.json (default: h100)
  --mfu F              share of the peak that training reaches (default: 0.4)
  --strategy NAME      ddp, zero1, zero2 or fsdp; several with commas (default: all)
  --stage S            this stage only
  --json               plain data in place of tables

what a record is like, as the data is not looked at:
  --picture WxH        its picture has this size, pixels (default: it fills the image budget, data.max_tiles)
  --tiles N            its picture gives N tiles, the thumbnail counted
  --text-tokens N      its text, boundaries counted (default: 64)
  --supervised F       share of the text that is learnt (default: 0.5)
  --measure            look at the data: 64 of its rows, and how many an epoch has"""

DEFAULTS = {"gpus": "1", "gpu": "h100", "mfu": "0.4", "strategy": "", "picture": "", "tiles": "", "text-tokens": "64",
            "supervised": "0.5"}  # fmt: skip


def main(words: list[str]) -> int:
    """Runs `mmframe plan`."""
    if not words or "--help" in words or "-h" in words:
        print(USAGE)
        return 0
    switches = {word for word in words if word in ("--json", "--measure")}
    args = parse("plan", [word for word in words if word not in switches])
    given = _options(args)
    from mmframe.planning.gpus import gpu

    unit = gpu(given["gpu"])  # mistakes are told before torch is loaded
    gpus, mfu = _whole("gpus", given["gpus"]), _share("mfu", given["mfu"])
    strategies = _strategies(given["strategy"])
    records = _records(given, "--measure" in switches)
    recipe, configs = _resolved(args)

    from mmframe import registry  # torch from here on
    from mmframe.cli.lightning_cli import qualify
    from mmframe.planning.rows import Assumptions
    from mmframe.planning.stage import Setting, plan_stage

    registry.discover()
    setting = Setting(unit, gpus, mfu, strategies)
    stages = {}
    for name, config in configs.items():
        if sys.stderr.isatty():
            print(f"plan: {recipe} {name}", file=sys.stderr, flush=True)
        stages[name] = plan_stage(name or recipe, qualify(config), setting, Assumptions(**records))
    plan = {"recipe": recipe, "gpus": gpus, "gpu": vars(unit), "mfu": mfu, "stages": stages, **_in_all(stages)}
    if "--json" in switches:
        print(json.dumps(plan, indent=1))
    else:
        from mmframe.planning.report import told

        print(told(plan))
    return 0


def _resolved(args: RunArguments) -> tuple[str, dict[str, dict[str, Any]]]:
    """Name of the recipe and configuration of each stage that is asked for, checked; "" is the one of a recipe without
    stages."""
    if not args.configs:
        raise UserError("plan: which recipe? --config RECIPE; `mmframe recipes ls` lists them")
    recipe = load_recipe(args.configs).with_overrides(args.overrides)
    recipe.check_stage(args.stage)
    names = [args.stage] if args.stage else list(recipe.stages) or [None]
    return recipe.name, {name or "": check(recipe, name) for name in names}


def _in_all(stages: dict[str, Any]) -> dict[str, Any]:
    """Sums over the stages; generation is planned for the records of the last one."""
    keys = ("samples", "tokens", "flops", "days", "gpu_hours")
    total = {key: sum(stage["run"][key] for stage in stages.values()) for key in keys}
    return {"total": total, "inference": [stage.pop("inference") for stage in stages.values()][-1]}


def _options(args: RunArguments) -> dict[str, str]:
    """Takes the plan's own flags out of the overrides."""
    given = DEFAULTS | {key: value for key, value in args.overrides if key in DEFAULTS}
    args.overrides = [(key, value) for key, value in args.overrides if key not in DEFAULTS]
    for key, _ in args.overrides:
        if "." not in key and key not in ("start_from", "seed_everything", "checkpoint_every"):
            raise UserError(f"plan: unknown flag --{key}; {suggest(key, [*DEFAULTS, 'json', 'measure', 'stage'])}")
    return given


def _whole(flag: str, text: str, low: int = 1) -> int:
    if not text.isdigit() or int(text) < low:
        raise UserError(f"plan: --{flag}={text} must be a whole number of at least {low}")
    return int(text)


def _share(flag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise UserError(f"plan: --{flag}={text} must be a share, above 0 and at most 1")
    return value


def _strategies(text: str) -> tuple[str, ...]:
    known = ("ddp", "zero1", "zero2", "fsdp")
    asked = tuple(text.split(",")) if text else known
    for name in asked:
        if name not in known:
            raise UserError(f"plan: --strategy {name!r} is not known; {suggest(name, known)}")
    return asked


def _records(given: dict[str, str], measure: bool) -> dict[str, Any]:
    picture = re.fullmatch(r"(\d+)x(\d+)", given["picture"])
    if given["picture"] and (not picture or "0" in picture.groups()):
        raise UserError(f"plan: --picture={given['picture']} must be WIDTHxHEIGHT in pixels, e.g. 640x480")
    return {
        "text": _whole("text-tokens", given["text-tokens"]),
        "supervised": _share("supervised", given["supervised"]),
        "picture": (int(picture[1]), int(picture[2])) if picture else None,
        "tiles": _whole("tiles", given["tiles"], 0) if given["tiles"] else None,
        "measure": measure,
    }
