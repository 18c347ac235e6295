"""P39: the guide docs/add_a_component.md does what it says, command by command, in a copy of the repository."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "add_a_component.md").read_text(encoding="utf-8")
COPIED = ("mmframe", "components", "cupy_kernels", "recipes", "tests", "pyproject.toml")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with the guide's two files in it."""
    root = tmp_path_factory.mktemp("guide")
    for name in COPIED:
        take = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        take(ROOT / name, root / name)
    (root / "components" / "patch_embedders" / "dct.py").write_text(blocks("python")[0], encoding="utf-8")
    grid = root / "experiments" / "ablations" / "dct.yaml"
    grid.parent.mkdir(parents=True)
    grid.write_text(next(block for block in blocks("yaml") if "axes:" in block), encoding="utf-8")
    return root


def run(copy: Path, command: str) -> str:
    program, *words = shlex.split(command)
    words = words if program == "python" else ["-m", "mmframe", *words]
    words += ["-p", "no:cacheprovider"] if "pytest" in words else []
    done = subprocess.run(
        [sys.executable, *words],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_every_command_runs_in_the_order_of_the_guide(copy: Path) -> None:
    said = {command: run(copy, command) for command in COMMANDS}
    shown, tested, trained, planned, swept, reported = said.values()
    assert "frequencies" in shown
    assert re.search(r"\b(\d+) passed", tested) and " skipped" not in tested
    assert (copy / "runs" / "dct" / "done.json").is_file()
    assert planned.count("dct_8") >= 2
    table = next((copy / "runs" / "ablate" / "dct").glob("*.md")).read_text(encoding="utf-8")
    assert "mono" in table and "dct_8" in table and "val/loss" in table


def test_the_readme_leads_to_the_guide() -> None:
    assert "docs/add_a_component.md" in (ROOT / "README.md").read_text(encoding="utf-8")
