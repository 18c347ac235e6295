"""The directory of one stage: what is in it, whether it is done, cut off or of another recipe. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from mmframe.checkpoint_files import any_checkpoint, sync_folder
from mmframe.cli.recipe import differing_keys, recipe_hash
from mmframe.cli.yamlio import dump, load
from mmframe.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

State = Literal["new", "cut off", "done"]


class RunDir:
    """Files of one stage's run.

    recipe.yaml  what was asked for      config.yaml  the same with every default      meta.json  code, versions, seed
    metrics.jsonl   checkpoints/ (true resume)   weights.safetensors (hand-over)   done.json (written last)

    Args:
        path: The directory; made when something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.config = path / "config.yaml"
        self.meta = path / "meta.json"
        self.last = path / "checkpoints" / "last.ckpt"
        self.weights = path / "weights.safetensors"
        self.done = path / "done.json"

    def state(self, config: dict[str, Any], started_from: str | None = None) -> State:
        """What an earlier run left here.

        Args:
            config: The resolved configuration that is to run.
            started_from: Identity of the weights that it is to start from.

        Raises:
            UserError: If the earlier run had another recipe or started from other weights.
        """
        state: State = "done" if self.done.is_file() else "cut off" if any_checkpoint(self.last.parent) else "new"
        if state == "new" or not self.recipe.is_file():
            return state
        ways = "use another --run-dir, or --force to start over"
        earlier, _ = load(self.recipe)
        earlier, config = _identity(earlier, state), _identity(config, state)
        if recipe_hash(earlier) != recipe_hash(config):
            keys = differing_keys(earlier, config)
            raise UserError(f"{self.path}: holds a run ({state}) of another recipe; they differ in {few(keys)}; {ways}")
        before = read_json(self.meta).get("started_from")
        if started_from is not None and before is not None and before != started_from:
            raise UserError(f"{self.path}: holds a run ({state}) that started from older weights; {ways}")
        return state

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keeps a second process out of this directory.

        Raises:
            Busy: If another process is running here.
        """
        return locked(self.path / ".lock", "wait for it, or use another --run-dir")

    def weights_id(self) -> str | None:
        """Identity of the weights that a finished run wrote."""
        return read_json(self.done).get("weights_id") if self.done.is_file() else None

    def set_aside(self) -> None:
        """Moves what is here to a sibling "<name>.old-N", so that the stage starts over and nothing is lost."""
        if not self.path.exists():
            return
        number = 1
        while (target := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        self.path.rename(target)

    def start(self, config: dict[str, Any]) -> None:
        """Writes recipe.yaml."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.recipe, dump(config))


class Busy(UserError):
    """Another process is at work there."""


@contextlib.contextmanager
def locked(file: Path, ways: str = "wait for it") -> Iterator[None]:
    """Keeps a second process out of the folder of a lock file; the system lets go however the process ends.

    Args:
        file: The lock; its folder is made.
        ways: What the other one's user can do, for the message.

    Raises:
        Busy: If another process holds it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+", encoding="utf-8") as stream:
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                stream.seek(0)
                raise Busy(f"{file.parent}: process {stream.read() or '?'} is running here; {ways}") from error
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def few(keys: list[str], limit: int = 6) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def read_json(file: Path) -> dict[str, Any]:
    """Content of a JSON file; {} when it is missing or was cut off."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_atomically(file: Path, text: str) -> None:
    """Writes a file completely or not at all."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{time.monotonic_ns()}")
    with open(temporary, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)
    sync_folder(file.parent)


def write_numbered(file: Path, text: str) -> Path:
    """Writes `file`, or `name.N.ext` beside it when it exists with another content. Nothing is overwritten."""
    number, target = 0, file
    while target.exists():
        if target.read_text(encoding="utf-8") == text:
            return target
        number += 1
        target = file.with_name(f"{file.stem}.{number}{file.suffix}")
    write_atomically(target, text)
    return target


def is_rank_zero() -> bool:
    """Whether this process is the first of a distributed run (or the only one), known before torch is loaded."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return all(os.environ.get(name, "0") == "0" for name in names)


_HOW = ("checkpoint_every", "checkpoints", "faults")
_DEALT = ("devices", "num_nodes", "strategy", "accumulate_grad_batches")


def _identity(config: dict[str, Any], state: State) -> dict[str, Any]:
    """A configuration without what only says how a run is kept, or how a killed one is continued.

    One that was cut off may go on with other ranks: mmframe.callbacks.elastic sees to it that a step has the same rows.
    """
    config = {key: value for key, value in config.items() if key not in _HOW}
    cut_off = state == "cut off"
    if cut_off and isinstance(config.get("trainer"), dict):
        config["trainer"] = {key: value for key, value in config["trainer"].items() if key not in _DEALT}
    data = config.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("init_args"), dict):
        return config
    free = ("allow_other_data", "batch_size") if cut_off else ("allow_other_data",)
    return {**config, "data": {**data, "init_args": {k: v for k, v in data["init_args"].items() if k not in free}}}
