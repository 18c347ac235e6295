"""One way to call the command line in this process, and one in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmframe.cli.main import main
from tests.cli.mixture_recipe import folder, mixture_folder  # noqa: F401  fixtures

ROOT = Path(__file__).parents[2]
QUICK = [
    "--trainer.max_steps=4",
    "--trainer.log_every_n_steps=2",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_progress_bar=false",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test runs in a directory of its own; what Lightning puts into the environment does not leak."""
    monkeypatch.chdir(tmp_path)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def cli(capsys):
    """Calls main() here; returns exit code, stdout, stderr."""

    def call(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


@pytest.fixture
def fails(cli):
    """Calls main() and expects the user's mistake: exit code 2 and one line, which is returned."""

    def call(*words):
        code, _, err = cli(*words)
        assert code == 2, err
        lines = err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("mmframe: error: "), err
        return lines[0]

    return call


def start(*words, cwd, **environment):
    """Starts `python -m mmframe ...` in a process group of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "mmframe", *map(str, words)]
    return subprocess.Popen(
        command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
