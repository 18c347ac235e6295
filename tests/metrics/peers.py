"""Other implementations of the metrics, taken out of their packages without importing these, and cases to compare on.

The packages are installed for this alone, never with mmframe; docs/metrics.md has the command.
"""

from __future__ import annotations

import ast
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CASES = 2_000

WORDS = (
    "a the An cat Dog red two ten none yes No left 12 3.5 3. 1,000 5% 10.4 $5 0 -7 dont won't couldn'tve couldntve "
    "it's U.S. two-dogs x/y (red) red,blue what? ! ... café 大象 naïve straße somebody'd yall one's STOP T-shirt"
).split()


def peer(package: str, file: str, *names: str, **known: Any) -> list[Any]:
    """Functions or classes of a file, with nothing else of it; skips the test where the package is not installed.

    Args:
        package: Which has the file.
        file: Path in it.
        names: Of top-level functions, classes or constants.
        known: Globals that they use.
    """
    spec = find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed; it is a peer to compare with, see docs/metrics.md")
    (folder,) = spec.submodule_search_locations or ()
    tree = ast.parse(Path(folder, file).read_text(encoding="utf-8"))
    found: dict[str, Any] = dict(known)
    wanted = [node for node in tree.body if names_of(node) & set(names)]
    for node in wanted:
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = []
    exec(compile(ast.Module(wanted, []), file, "exec"), found)
    return [found[name] for name in names]


def names_of(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {node.name} if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else set()


def phrase(draw: random.Random, longest: int = 3) -> str:
    """A short answer with the edge cases of normalisers in it; sometimes empty."""
    joint = draw.choice([" ", " ", " ", "  ", "", "\n", ", ", "-"])
    return joint.join(draw.choices(WORDS, k=draw.randrange(longest + 1)))


def near(draw: random.Random, text: str) -> str:
    """The text, or one like it."""
    change = draw.randrange(6)
    if change == 0 or not text:
        return phrase(draw)
    place = draw.randrange(len(text))
    edits = {
        1: text[:place] + text[place + 1 :],
        2: text[:place] + "x" + text[place:],
        3: text.upper(),
        4: f" {text}. ",
    }
    return edits.get(change, text)


def caption(draw: random.Random) -> str:
    """A caption of a small vocabulary, so that n-grams repeat."""
    words = "a the man dog red bus wave on in riding street two with and is".split()
    return " ".join(draw.choices(words, k=draw.randrange(1, 13)))
