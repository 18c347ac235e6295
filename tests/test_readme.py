"""P39: the commands of the README and of the docs run, and set-up stays at two commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from mmframe.cli.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [
    line for block in blocks("sh") for line in block.splitlines() if re.match(r"(lightning|mmframe) (?!doctor)", line)
]


def test_set_up_is_two_commands_and_they_exist() -> None:
    set_up = README.split("## Set up")[1].split("```")[1].split()
    assert set_up == ["make", "demo", "make", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo:", makefile, re.M) and re.search(r"^test:", makefile, re.M)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_readme_runs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command, comments=True)[1:]
    if words[0] == "fit" and "--dry-run" not in words:
        words += ["--run-dir", str(tmp_path / "run"), "--in-process", "--trainer.max_steps=2"]
    monkeypatch.chdir(ROOT)
    assert main(words) == 0


def test_python_of_the_readme_adds_a_component(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmframe import registry

    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    source = next(block for block in blocks("python") if "@register" in block)
    namespace: dict[str, object] = {"__name__": "readme"}
    exec(compile(source, "README.md", "exec"), namespace)
    assert registry.get("router", "BoundaryRouter") is namespace["BoundaryRouter"]
