"""`mmframe evaluate`: scores a model on benchmarks; a killed run goes on where it was. `report`, `browse`, `tasks`."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmframe.cli.flags import parse_flags, whole
from mmframe.cli.launch import launch
from mmframe.cli.progress_line import ProgressLine
from mmframe.cli.serving import add_model_flags, open_model
from mmframe.errors import UserError

if TYPE_CHECKING:  # torch is loaded only to run something
    from mmframe.evaluate.ranks import Ranks
    from mmframe.evaluate.record import Result
    from mmframe.tasks.task import Task

PARTS = {
    "report": "mmframe.cli.evaluate_report",
    "browse": "mmframe.cli.evaluate_browse",
    "tasks": "mmframe.cli.evaluate_tasks",
}
EXAMPLE = """  mmframe evaluate --model M --tasks docvqa_val,chartqa_test --data DATA --out results
  mmframe evaluate tasks                  the benchmarks, and the official files that each reads from DATA
  mmframe evaluate report results         the tables of the paper, published rows beside ours
  mmframe evaluate browse results/M/docvqa_val    a page of pictures, answers and references
RESULTS/MODEL/TASK gets result.json (the score and everything that it depends on) and answers.jsonl. The same command
continues a run that was killed. Several GPUs: --ranks N, or start it with torchrun; the score does not depend on it."""


def main(words: list[str]) -> int:
    """Runs `mmframe evaluate ...`."""
    if words and words[0] in PARTS:
        return import_module(PARTS[words[0]]).main(words[1:])
    args = parse_flags("evaluate", words, _describe)
    if args is None:
        return 0
    tasks = _tasks(args)
    if args.ranks > 1 and "RANK" not in os.environ:
        return launch(["evaluate", *words], args.ranks)
    from mmframe.evaluate.ranks import FirstRankFailed, Ranks

    ranks = Ranks.joined()
    try:
        results = _evaluate(args, tasks, ranks)
    except FirstRankFailed as told:
        return told.exit_code
    except KeyboardInterrupt:
        print("\nevaluate: stopped; the same command goes on", file=sys.stderr)
        raise
    if ranks.first:
        print(_table(results))
    return 0


def _describe(parser: argparse.ArgumentParser) -> None:
    parser.description = "Scores a model on benchmarks."
    parser.epilog = EXAMPLE
    parser.add_argument("--tasks", required=True, metavar="A,B", help="shipped tasks, or YAML files like them")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the official files; see `mmframe evaluate tasks`")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="RESULTS", help="default: %(default)s")
    parser.add_argument("--name", metavar="NAME", help="of the model in RESULTS and tables; default: from --model")
    parser.add_argument(
        "--batch-size", type=whole(1), default=8, metavar="N", help="prompts at once (default: %(default)s)"
    )
    parser.add_argument("--limit", type=whole(1), metavar="N", help="the first N examples: a trial, not for tables")
    parser.add_argument("--ranks", type=whole(1), default=1, metavar="N", help="processes, each on a GPU of its own")
    parser.add_argument("--force", action="store_true", help="start over; what is there is kept as TASK.old-N")
    add_model_flags(parser, system=False)
    group = parser.add_argument_group("judge (tasks that have one; without it rules alone score)")
    group.add_argument("--judge", metavar="URL", help="an OpenAI-compatible endpoint, e.g. https://host/v1")
    group.add_argument("--judge-model", metavar="NAME", help="the model to ask there")


def _tasks(args: argparse.Namespace) -> list[Task]:
    """Everything that can be wrong before a model is loaded."""
    from mmframe.tasks import load_task

    if (args.judge is None) != (args.judge_model is None):
        raise UserError("evaluate: --judge and --judge-model belong together")
    if args.data is not None and not args.data.is_dir():
        raise UserError(f"evaluate: --data {args.data} is no folder")
    names = [name.strip() for name in args.tasks.split(",") if name.strip()]
    twice = [name for name in names if names.count(name) > 1]
    if not names or twice:
        raise UserError(f"evaluate: --tasks {args.tasks}: {f'{twice[0]!r} stands twice' if twice else 'names no task'}")
    return [load_task(name, args.data) for name in names]


def _evaluate(args: argparse.Namespace, tasks: Sequence[Task], ranks: Ranks) -> list[tuple[Path, Result]]:
    import torch

    from mmframe.evaluate.run import Identity, evaluate_task

    if ranks.count > 1 and args.device == "auto" and torch.cuda.is_available():
        args.device = f"cuda:{os.environ.get('LOCAL_RANK', ranks.rank)}"
    served = open_model(args)
    name = args.name or model_name(args.model, served.model.metadata)
    identity = Identity.of(served.model.net, args.model, name)
    line = ProgressLine()
    if ranks.first:
        line.tell(f"evaluate: {served.describe()}{f', {ranks.count} ranks' if ranks.count > 1 else ''}")
    results = []
    for task in tasks:
        out = args.out / name / task.name
        result = evaluate_task(
            task,
            served.model,
            out,
            batch_size=args.batch_size,
            limit=args.limit,
            max_tiles=args.max_tiles,
            identity=identity,
            engine=served.engine,
            ranks=ranks,
            progress=line,
            judge=_judge(args, out),
            force=args.force,
        )
        results.append((out, result))
    return results


def _judge(args: argparse.Namespace, out: Path) -> Any:
    if args.judge is None:
        return None
    from mmframe.evaluate.judge import JUDGEMENTS, Judge

    return Judge(args.judge, args.judge_model, out / JUDGEMENTS)


def model_name(source: str, metadata: dict[str, Any]) -> str:
    """Name of a model in folders and tables: of its folder, file or hub id; of a stage with its recipe's before it."""
    path = Path(source).expanduser()
    path = path.resolve() if path.exists() else path
    path = path.parent if path.name == "weights.safetensors" else path
    name = path.stem if path.suffix in (".gguf", ".safetensors") else path.name
    if (metadata.get("run") or {}).get("stage") == name:
        name = f"{path.parent.name}-{name}"
    return re.sub(r"[^\w.-]+", "-", name)


def _table(results: Sequence[tuple[Path, Result]]) -> str:
    rows = [["task", "figure", "score", "n", "unmatched", "errors", "minutes", "written to"]]
    for out, result in results:
        score = f"{result.score:.2f}" if result.figures else "not public"
        counts = [str(result.n), str(result.unmatched), str(result.errors)]
        rows.append([result.task, result.headline, score, *counts, f"{result.seconds / 60:.1f}", str(out)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        texts = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:-1], widths[2:-1], strict=True)]
        lines.append("  ".join([*texts, *numbers, row[-1]]))
    return "\n".join(lines)
