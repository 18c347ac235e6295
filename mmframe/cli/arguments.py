"""The words after `fit`: recipes, our own flags, and `--key=value` overrides. No abbreviations."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mmframe.cli.recipe import Override
from mmframe.errors import UserError

SWITCHES = {
    "--dry-run": "resolve and check everything, say what would run, and stop",
    "--force": "start over: set aside what an earlier run left in the run directory",
    "--in-process": "run all stages in this process (tests)",
    "--print_config": "print the resolved configuration and stop",
    "--debug": "show the traceback of errors",
    "--help": "this help",
    "--help-all": "every key of the trainer, the model and the data (slow: loads torch)",
}
VALUES = {
    "--config": "recipe: path or shipped name; several are merged, later ones win",
    "--stage": "run this stage only",
    "--run-dir": "directory of the run (default: runs/<recipe>)",
    "--handover": "",  # set by the chain: JSON of chain.Handover
}
_SHORT = {"-c": "--config", "-h": "--help"}
HIDDEN = ("--handover",)


@dataclass
class RunArguments:
    """What the user asked for."""

    command: str
    configs: list[str] = field(default_factory=list)
    overrides: list[Override] = field(default_factory=list)
    stage: str | None = None
    run_dir: Path | None = None
    handover: str | None = None
    switches: set[str] = field(default_factory=set)

    def on(self, switch: str) -> bool:
        """Whether a switch such as "--dry-run" was given."""
        return switch in self.switches


def parse(command: str, words: list[str]) -> RunArguments:
    """Reads the words after the command. Flags may stand before or after `--config`.

    Raises:
        UserError: For a flag without its value, or a switch with one.
    """
    out = RunArguments(command)
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            out.configs.append(word)  # `fit toy/evip` is `fit --config toy/evip`
            continue
        flag, equals, value = word.partition("=")
        flag = _SHORT.get(flag, flag)
        if flag == "--run_dir":
            flag = "--run-dir"
        if flag in SWITCHES:
            if equals:
                raise UserError(f"{flag} is a switch and takes no value, got {value!r}")
            out.switches.add(flag)
            continue
        if not flag.startswith("--"):
            raise UserError(f"{word!r} is not an option; options are written --key=value")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"{flag} needs a value: {flag}=VALUE")
            value = rest.pop(0)
        if flag == "--config":
            out.configs.append(value)
        elif flag == "--stage":
            out.stage = value
        elif flag == "--run-dir":
            out.run_dir = Path(value)
        elif flag == "--handover":
            out.handover = value
        else:
            out.overrides.append((flag[2:], value))
    return out
