"""What figures of this process depend on: versions, device, revision of the code."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import mmframe

_VERSIONS = ("torch", "lightning", "jsonargparse", "timm", "torchmetrics", "numpy", "safetensors", "tokenizers")


def versions() -> dict[str, str]:
    """Versions of python and of the packages that results depend on."""
    found = {"python": platform.python_version(), "mmframe": mmframe.__version__}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def device_name() -> str:
    """The GPU, or the CPU and its threads, that figures of this process belong to."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


@functools.cache
def code_revision() -> dict[str, Any]:
    """Git revision of mmframe's source and whether it was changed since; None outside of a checkout.

    As it was when first asked for: what is changed later is not what runs."""
    root = Path(mmframe.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {"revision": None, "dirty": None}

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changed = git("status", "--porcelain")
    return {"revision": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}
