"""main(): shared by `lightning`, `mmframe` and `python -m mmframe`. Loads torch only to run something."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from mmframe import __version__
from mmframe.errors import UserError, suggest

RUN = {
    "fit": "train a recipe: all stages, or one",
    "validate": "run the validation data through one stage's model",
    "test": "score one stage's model on benchmarks (--data=TaskData)",
    "predict": "run the prediction data through one stage's model",
}
# word -> (module, function taking the rest of the words, one line of help)
TOOLS = {
    "recipes": ("mmframe.cli.recipes", "main", "ls | show | cp | validate"),
    "plan": (
        "mmframe.cli.plan",
        "main",
        "what training a recipe takes: parameters, FLOPs, memory, days, before it starts",
    ),
    "data": ("mmframe.cli.data", "main", "offline | plan | show: real data to train on, how rows are filled"),
    "components": ("mmframe.cli.components", "main", "ls [KIND] | show NAME"),
    "import": ("mmframe.cli.convert", "import_main", "SRC DST: official folder, .gguf or hub id -> ours"),
    "export": ("mmframe.cli.convert", "export_main", "SRC DST: ours -> the official layout"),
    "chat": ("mmframe.cli.chat", "main", "talk to a model in the terminal, with pictures"),
    "generate": ("mmframe.cli.generate", "main", "answer the rows of a JSONL file, batched; continues after a kill"),
    "evaluate": ("mmframe.cli.evaluate", "main", "score a model on benchmarks; report | browse | tasks"),
    "web": ("mmframe.cli.web", "main", "a chat page in the browser (extra: web)"),
    "ablate": ("mmframe.cli.ablate", "main", "GRID | report: change one thing, keep the rest equal, over seeds"),
    "replay": ("mmframe.cli.replay", "main", "RUN: run a step again at which a run stopped; names the first module"),
    "runs": ("mmframe.cli.runs", "main", "[DIR]: the runs there and their state: done, running, stopped, failed, dead"),
    "watch": (
        "mmframe.cli.watch",
        "main",
        "RUN: stages, loss, speed and time to go, as it goes; from any terminal",
    ),
    "diff": ("mmframe.cli.diff", "main", "A B: the keys in which two recipes, runs or checkpoints differ"),
    "doctor": ("mmframe.cli.doctor", "main", "what is installed, what would run, who owns the commands"),
}
EXAMPLES = """examples:
  mmframe fit --config toy/evip_pp                            all stages, on the CPU, in seconds
  mmframe fit --config recipes/demo/evip_pp.yaml --stage s1_2_semantic
  mmframe fit --config toy/evip_pp --model.router=SharedRouter --trainer.max_steps=3
  mmframe recipes show demo/evip_pp --stage s1_1_concept
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Words after the command's name; default: those of the process.

    Returns:
        Exit code: 0, 2 for the user's mistakes (told in one line), 143 after SIGTERM, 130 after Ctrl-C.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    program = Path(sys.argv[0]).stem if argv is None else "mmframe"
    program = program if program in ("lightning", "mmframe") else "mmframe"
    try:
        return _dispatch(program, words)
    except UserError as error:
        if "--debug" in words:
            raise
        sys.stdout.flush()
        print(f"{program}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(program: str, words: list[str]) -> int:
    word = words[0] if words else "--help"
    if word in ("--help", "-h", "help"):
        print(_help(program))
        return 0
    if word in ("--version", "-V"):
        print(f"mmframe {__version__}")
        return 0
    if word in RUN:
        return _run(word, words[1:])
    if word in TOOLS:
        module, function, _ = TOOLS[word]
        return getattr(import_module(module), function)(words[1:])
    if program == "lightning":
        return _foreign(word)
    raise UserError(f"unknown command {word!r}; {suggest(word, [*RUN, *TOOLS])}")


def _foreign(word: str) -> int:
    """Hands a word that is not ours to another distribution's `lightning`, where there is one."""
    for entry in entry_points(group="console_scripts", name="lightning"):
        if entry.dist is not None and entry.dist.name != "mmframe":
            return entry.load()() or 0
    raise UserError(
        f"unknown command {word!r}; {suggest(word, [*RUN, *TOOLS])} "
        "(no other package with a `lightning` command is installed)"
    )


def _run(command: str, words: list[str]) -> int:
    from mmframe.cli.arguments import parse

    args = parse(command, words)
    if args.on("--help") or not words:
        print(_run_help(command))
        return 0
    if args.on("--help-all"):
        from mmframe.cli.lightning_cli import help_all

        return help_all(command)
    if args.on("--print_config"):
        from mmframe.cli.recipes import print_resolved

        return print_resolved(args)
    if command == "fit":
        from mmframe.cli.chain import fit

        return fit(args)
    from mmframe.cli.stage_evaluation import evaluate

    return evaluate(args)


def _help(program: str) -> str:
    lines = [f"usage: {program} COMMAND ...", "", "commands:"]
    lines += [f"  {name:<12}{text}" for name, text in RUN.items()]
    lines += [f"  {name:<12}{text}" for name, (_, _, text) in TOOLS.items()]
    lines += ["", f"`{program} COMMAND --help` says more. `--version` prints the version.", "", EXAMPLES.rstrip()]
    return "\n".join(lines)


def _run_help(command: str) -> str:
    from mmframe.cli.arguments import HIDDEN, SWITCHES, VALUES

    lines = [f"usage: mmframe {command} --config RECIPE [options] [--key=value ...]", "", RUN[command], "", "options:"]
    lines += [f"  {flag + ' X':<16}{text}" for flag, text in VALUES.items() if flag not in HIDDEN]
    lines += [f"  {flag:<16}{text}" for flag, text in SWITCHES.items()]
    lines += [
        "",
        "--key=value sets any key of the recipe, in every stage, with a YAML value:",
        "  --trainer.max_steps=3            --model.router=SharedRouter (another class: its own defaults)",
        "  --model.router.init=zero         short for --model.router.init_args.init=zero",
        "  --trainer.callbacks+=Timer       appends to a list",
        "  --stages.s1_1_concept.trainer.max_steps=3    in this stage only",
        "",
        EXAMPLES.rstrip(),
    ]
    return "\n".join(lines)
