"""`mmframe components ls [KIND] | show NAME`: the registry, read from the source. No torch."""

from __future__ import annotations

import textwrap

from mmframe.catalog import catalog, lookup, of_kind
from mmframe.cli.check import LINKED
from mmframe.errors import UserError, suggest
from mmframe.registry import KINDS

USAGE = """usage: mmframe components ls [KIND]     names and first lines
       mmframe components show NAME     docs, arguments, defaults"""

NAMED = {"source": "data.init_args.sources", "auxiliary": "model.auxiliary"}
"""Kinds of which a recipe has several, each by a name of its own, and where."""


def main(words: list[str]) -> int:
    """Runs `mmframe components ...`."""
    command, rest = (words[0], words[1:]) if words else ("ls", [])
    if command in ("--help", "-h") or "--help" in rest:
        print(USAGE)
        return 0
    if command not in ("ls", "show"):
        raise UserError(f"components: unknown command {command!r}; {suggest(command, ('ls', 'show'))}")
    return ls(rest) if command == "ls" else show(rest)


def ls(words: list[str]) -> int:
    """Lists the components by kind."""
    for kind in words:
        if kind not in KINDS:
            raise UserError(f"components ls: unknown kind {kind!r}; {suggest(kind, KINDS)}")
    width = max((len(name) for name in catalog()), default=0)
    for kind in words or KINDS:
        entries = of_kind(kind)
        if entries or words:
            print(f"{kind}:")
        for name, entry in entries.items():
            print(f"  {name:<{width}}  {entry.summary}")
    return 0


def show(words: list[str]) -> int:
    """Prints everything the source says about one component."""
    if len(words) != 1:
        raise UserError("components show: needs one name; `mmframe components ls` lists them")
    entry = lookup(words[0])
    arguments = entry.signature.arguments
    print(f"{entry.name}  ({entry.kind}, {entry.path})\n")
    description = entry.doc.split("\nArgs:")[0].strip()
    print(textwrap.indent(description, "  "))
    if arguments:
        print("\narguments:")
    for argument in arguments.values():
        default = "set from the backbone" if (entry.kind, argument.name) in LINKED else argument.default_text
        print(f"  {argument.name}: {argument.type_text} = {default}")
        if argument.doc:
            print(textwrap.fill(argument.doc, 110, initial_indent="      ", subsequent_indent="      "))
    section = "data" if entry.kind == "data" else f"model.{entry.kind}"
    if entry.kind == "tokenizer":
        section = "model.processor.tokenizer"
    if entry.kind in NAMED:
        needed = next((name for name, argument in arguments.items() if argument.required), None)
        arguments_text = f"init_args: {{{needed}: ...}}" if needed else "init_args: {}"
        print(f"\nin a recipe, under {NAMED[entry.kind]}:\n  NAME: {{class_path: {entry.name}, {arguments_text}}}")
        return 0
    if entry.kind == "callback":
        needed_text = ", ".join(f"{name}: ..." for name, argument in arguments.items() if argument.required)
        print(
            f"\nin a recipe, under trainer.callbacks:\n  - {{class_path: {entry.name}, init_args: {{{needed_text}}}}}"
        )
    elif entry.kind == "checkpoint":
        print("\nchosen by config.json:\n  mmframe import SRC DST")
    else:
        print(f"\nin a recipe:\n  --{section}={entry.name}")
    return 0
