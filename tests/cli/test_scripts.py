"""Who owns the command `lightning`, what the doctor sees, and what the packages hold."""

import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from mmframe.cli import doctor, main

from .conftest import ROOT, start


class Foreign:
    """Another distribution's `lightning`."""

    value = "lightning_sdk.cli:main"

    def __init__(self, name="lightning-sdk"):
        self.dist = SimpleNamespace(name=name)
        self.calls = []

    def load(self):
        return lambda: self.calls.append(list(sys.argv))


@pytest.fixture
def as_lightning(monkeypatch, capsys):
    """Runs main() as the script `lightning`."""

    def call(*words, scripts=()):
        monkeypatch.setattr(sys, "argv", ["/some/bin/lightning", *words])
        monkeypatch.setattr(main, "entry_points", lambda **_: list(scripts))
        code = main.main()
        return code, capsys.readouterr()

    return call


def test_words_that_are_not_ours_go_on_to_the_other_script(as_lightning):
    ours, other = Foreign("mmframe"), Foreign()
    code, _ = as_lightning("studio", "--start", scripts=[ours, other])
    assert code == 0 and not ours.calls and other.calls == [["/some/bin/lightning", "studio", "--start"]]


def test_our_words_stay_with_us(as_lightning):
    other = Foreign()
    code, out = as_lightning("recipes", "ls", scripts=[other])
    assert code == 0 and "toy/evip" in out.out and not other.calls


def test_without_another_script_it_is_one_line(as_lightning):
    code, out = as_lightning("studio", scripts=[Foreign("mmframe")])
    assert code == 2
    assert out.err.startswith("lightning: error: unknown command 'studio'") and len(out.err.splitlines()) == 1


def test_the_scripts_are_declared(cli):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["scripts"]) == {"lightning", "mmframe"}
    for target in project["scripts"].values():
        assert EntryPoint("x", target, "console_scripts").load() is main.main
    assert project["entry-points"]["mmframe.plugins"] == {"components": "components"}
    assert cli("--version")[1] == "mmframe 0.1.0\n"


def test_all_packages_are_listed():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = [
        file.parent for top in ("mmframe", "components", "cupy_kernels") for file in (ROOT / top).rglob("__init__.py")
    ]
    on_disk = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(tools["packages"]) == on_disk | {"mmframe._recipes"}


def test_doctor_is_content_here(cli):
    code, out, _ = cli("doctor")
    assert code == 0, out
    assert "expert backend" in out and out.strip().endswith("all well") and out.count("(ours)") == 3


def test_doctor_sees_a_foreign_script(cli, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "lightning").write_text("from lightning_sdk.cli import main\n")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr(doctor, "entry_points", lambda **_: [Foreign()])
    code, out, _ = cli("doctor", "--no-torch")
    assert code == 1 and "`lightning` belongs to lightning-sdk" in out and "--force-reinstall" in out


def test_a_foreign_package_called_components_is_told(tmp_path):
    (tmp_path / "components").mkdir()
    (tmp_path / "components" / "__init__.py").write_text("raise RuntimeError('never imported')\n")
    process = start("doctor", "--no-torch", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "NOT OURS" in output
    assert f"PROBLEM  package `components` is {tmp_path / 'components'}, not " in output
    process = start("components", "ls", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2 and "package 'components' is" in output and "another directory" in output


def test_a_wheel_in_another_directory_runs_a_toy_recipe(tmp_path):
    """Built, installed beside nothing of the checkout, run elsewhere; third-party packages are those of this python."""
    import torch

    wheels, copy = tmp_path / "wheels", tmp_path / "copy"
    copy.mkdir()
    for name in ("mmframe", "components", "cupy_kernels", "recipes"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", wheels, copy], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    wheel = next(wheels.glob("mmframe-*.whl"))
    # --target leaves the mmframe of this environment alone (--prefix would uninstall it)
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", site, wheel], check=True)
    shutil.copy(site / "bin" / "mmframe", tmp_path / "venv" / "bin" / "lightning")
    # a folder in a .pth file is put on the path, but the .pth files in it (the checkout's) are not read
    (site / "others.pth").write_text(str(next(p for p in map(str, torch.__path__)).removesuffix("torch")) + "\n")
    work = tmp_path / "work"
    work.mkdir()
    for words in (["doctor"], ["recipes", "validate"], ["fit", "toy/dense", "--trainer.max_steps=2"]):
        command = [tmp_path / "venv" / "bin" / "python", "-m", "mmframe", *words]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert str(ROOT / "mmframe") not in done.stdout
    assert (work / "runs/toy/dense/done.json").is_file()
