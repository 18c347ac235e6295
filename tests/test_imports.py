"""Imports go one way: experiments -> components -> mmframe, and cupy_kernels stands alone.

Read from the source, so that an import inside of a function counts too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.served import tiny_model

ROOT = Path(__file__).parents[1]
OURS = {"mmframe", "components", "cupy_kernels", "recipes", "experiments", "tests"}
MAY_IMPORT = {
    "mmframe": {"mmframe", "cupy_kernels"},  # the kernels only through the expert backends, see below
    "components": {"mmframe", "components"},
    "cupy_kernels": {"cupy_kernels"},
    "experiments": {"experiments", "components", "mmframe", "cupy_kernels"},
}
MAY_SEE_KERNELS = {"mmframe/expert_backends.py", "mmframe/cupy_backend.py"}


def imports(source: str, package: str) -> Iterator[str]:
    """Dotted names of all imports of a file, also by importlib.import_module("...") and __import__("...").

    Args:
        source: Text of the file.
        package: Dotted name of its package, for relative imports.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])])
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__") and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def of_ours(path: Path) -> set[str]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return {name.split(".")[0] for name in imports(path.read_text(encoding="utf-8"), package)} & OURS


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package: str) -> None:
    wrong = {str(path.relative_to(ROOT)): of_ours(path) - MAY_IMPORT[package] for path in files(package)}
    assert {path: names for path, names in wrong.items() if names} == {}
    assert files(package) or package == "experiments"


def test_the_framework_sees_the_kernels_through_the_backend_contract_alone() -> None:
    seen = {path.relative_to(ROOT).as_posix() for path in files("mmframe") if "cupy_kernels" in of_ours(path)}
    assert seen <= MAY_SEE_KERNELS


def test_components_do_not_need_the_model_or_the_command_line() -> None:
    """A component rests on contracts, not on what is composed of it."""
    for path in files("components"):
        package = ".".join(path.relative_to(ROOT).parent.parts)
        used = set(imports(path.read_text(encoding="utf-8"), package))
        assert not {n for n in used if n.startswith(("mmframe.cli", "mmframe.model", "mmframe.module"))}, path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import components.routers", "components.routers"),
        ("def f():\n    from experiments import grid", "experiments"),
        ("import importlib\nimportlib.import_module('recipes.x')", "recipes.x"),
        ("from ..components import x", "components"),
        ("from . import y", "mmframe.cli"),
    ],
)
def test_the_reader_of_imports_sees_all_their_forms(line: str, expected: str) -> None:
    package = "mmframe" if ".." in line else "mmframe.cli"
    assert expected in set(imports(line, package))


def test_loading_a_model_does_not_load_the_compiler_of_torch(tmp_path: Path) -> None:
    """It takes seconds, and torch does it to draw random numbers on the meta device."""
    tiny_model(tmp_path)
    code = "import sys; from mmframe.loading import load; load(sys.argv[1]); assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)
