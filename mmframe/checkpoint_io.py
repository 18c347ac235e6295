"""How a checkpoint is written: whole or not at all, at once or in the background; and read, with one clear line."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection

from mmframe.checkpoint_files import damage
from mmframe.errors import UserError
from mmframe.safetensors_file import replacing

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "the file is too large"}


class CheckpointWriter(TorchCheckpointIO):
    """Writes to a temporary name, syncs file and folder, renames. A kill at any byte leaves what was there before.

    Args:
        background: Copies all tensors to host memory and writes them in a thread, while training goes on. Never two at
            once: the next checkpoint, and the end of the run, wait for it. Needs the size of a checkpoint in memory.
    """

    def __init__(self, background: bool = False) -> None:
        super().__init__()
        self.background = background
        self._thread: ThreadPoolExecutor | None = None
        self._running: list[Future] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises UserError if the disk is full; in the background: at the next call, or at `join`."""
        self.join()
        if not self.background:
            write(checkpoint, Path(path))
            return
        snapshot = apply_to_collection(checkpoint, torch.Tensor, _copied)
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running.append(self._thread.submit(write, snapshot, Path(path)))

    def then(self, action: Callable[[], None]) -> None:
        """Does something when the checkpoint is on the disk; not at all if it could not be written."""
        if not self._running:
            action()
            return
        before = self._running[-1]
        assert self._thread is not None

        def after() -> None:
            if before.exception() is None:
                action()

        self._running.append(self._thread.submit(after))

    def join(self) -> None:
        """Waits for what is being written.

        Raises:
            UserError: it could not be written.
        """
        running, self._running = self._running, []
        for future in running:
            future.result()

    def teardown(self) -> None:
        self.join()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Raises UserError for a file that is missing or damaged."""
        if not Path(path).is_file():
            raise UserError(f"ckpt_path: {path} does not exist")
        if wrong := damage(Path(path)):
            raise UserError(f"ckpt_path: {path} is damaged: {wrong}; take another checkpoint of the run")
        return super().load_checkpoint(path, *args, **kwargs)


def writer_of(trainer: Any) -> CheckpointWriter:
    """What writes the files; a strategy, or a plugin of the user's, that brings its own has written when it returns."""
    found = getattr(trainer.strategy, "checkpoint_io", None)
    return found if isinstance(found, CheckpointWriter) else CheckpointWriter()


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """One file.

    Raises:
        UserError: the disk is full; what was there before is untouched.
    """
    try:
        with replacing(path) as file:
            torch.save(checkpoint, file)
    except (OSError, RuntimeError) as error:
        if (why := disk_full(error)) is None:
            raise
        needed = sum(_bytes_in(checkpoint))
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f"checkpoint {path}: {why} ({needed / 2**20:,.1f} MiB needed, {free / 2**20:,.1f} free); checkpoints "
            "before it are whole; make room, and the same command goes on from there"
        ) from error


def disk_full(error: BaseException | None) -> str | None:
    """Why nothing more could be written, if that was the cause; torch hides the system's error behind its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return _FULL[error.errno]
        error = error.__cause__ or error.__context__
    return None


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def _bytes_in(value: Any) -> list[int]:
    if isinstance(value, torch.Tensor):
        return [value.nbytes]
    if isinstance(value, dict):
        value = list(value.values())
    return [n for item in value for n in _bytes_in(item)] if isinstance(value, list | tuple) else []
