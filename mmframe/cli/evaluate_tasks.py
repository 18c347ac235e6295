"""`mmframe evaluate tasks`: the benchmarks that there are, and what each asks. No torch."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from mmframe.cli.flags import parse_flags, whole
from mmframe.cli.yamlio import dump
from mmframe.errors import UserError, suggest
from mmframe.tasks import Example, load_task, task_names
from mmframe.tasks.spec import TABLES, Spec, read_spec

TITLES = {
    "general": "general multimodal (the paper's first table)",
    "vqa": "visual question answering (the paper's second table)",
    "captions": "after pre-training, without instruction tuning",
    "language": "language that was kept",
    "offline": "others, and tasks on the offline corpus",
}
USAGE = """usage: mmframe evaluate tasks [ls]                      name, split, metric and mode, by the paper's tables
       mmframe evaluate tasks show TASK [--data DIR]    its YAML, and with its files what is asked first
TASK is a shipped task or a YAML file like those in recipes/tasks (docs/tasks.md)."""


def main(words: list[str]) -> int:
    """Runs `mmframe evaluate tasks ...`."""
    command, rest = (words[0], words[1:]) if words else ("ls", [])
    if command in ("--help", "-h"):
        print(USAGE)
        return 0
    if command not in ("ls", "show"):
        raise UserError(f"evaluate tasks: unknown command {command!r}; {suggest(command, ('ls', 'show'))}")
    return ls(rest) if command == "ls" else show(rest)


def ls(words: list[str]) -> int:
    """Lists the shipped tasks."""
    if parse_flags("evaluate tasks ls", words, lambda parser: None) is None:
        return 0
    specs = [read_spec(name) for name in task_names()]
    for table in TABLES:
        print(f"{TITLES[table]}:")
        for spec in (each for each in specs if each.table == table):
            metric = spec.metric["class_path"] if spec.reference else "not scored"
            print(f"  {spec.name:<20}{spec.split:<10}{metric:<21}{spec.mode:<11}{spec.about}")
    return 0


def show(words: list[str]) -> int:
    """Prints a task's YAML with everything that it extends, and its first examples."""

    def flags(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("task", help="a shipped task, or a YAML file")
        parser.add_argument("--data", metavar="DIR", type=Path, help="folder with the official files")
        parser.add_argument("--examples", metavar="N", type=whole(0), help="how many to show (default 3 with --data)")

    args = parse_flags("evaluate tasks show", words, flags)
    if args is None:
        return 0
    spec = read_spec(args.task)
    print(f"# {spec.file}")
    print(dump(resolved(spec)), end="")
    count = args.examples if args.examples is not None else 3 if args.data is not None else 0
    if count:
        task = load_task(args.task, args.data)
        print(f"\n# {len(task):,} examples; prompts {task.prompt_digest}, data {task.data_fingerprint}")
        for index in range(min(count, len(task))):
            print(f"\n{written(task[index])}")
    return 0


def resolved(spec: Spec) -> dict[str, object]:
    """What the YAML says, with what it extends, without what is not said."""
    return {
        key: value for key, value in asdict(spec).items() if key not in ("name", "file") and value not in (None, {})
    }


def written(example: Example) -> str:
    """An example as text: every turn as it is, then what the metric gets."""
    lines = [f"=== {example.id}"]
    for turn in example.turns:
        lines += [f"--- {turn['from']}", turn["value"]]
    if example.images:
        lines.append(f"--- {len(example.images)} picture{'s' * (len(example.images) > 1)}")
    if example.options:
        lines += ["--- options", *map(json.dumps, example.options)]
    lines += ["--- reference", json.dumps(dict(example.reference), ensure_ascii=False)]
    return "\n".join(lines)
