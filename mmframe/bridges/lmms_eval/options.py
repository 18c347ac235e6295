"""What --model_args can say."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mmframe.cli.serving import DTYPES, Served, open_model
from mmframe.errors import UserError, suggest

NAME = "lmms-eval model mmframe"


@dataclass(frozen=True)
class Options:
    """Arguments of the model.

    Attributes:
        pretrained: run directory, weights file, official folder, .gguf or hub id.
        batch_size: prompts at once; of likelihoods, continuations at once.
        device: cpu, cuda, ...; default: the GPU of this rank where there is one.
        dtype: bf16 or fp32; default: as stored.
        max_tiles: most tiles of a question's pictures; default: as trained, else 12.
        system_prompt: a text, or a file that holds it, in place of the task's system message and the template's own;
            "" for none.
        max_new_tokens: longest answer of a task that does not say it.
        stop_at_blank_line: see decoding.sampling_params.
        loss: what a likelihood is given as: ``mean``, nats a token, as lmms-eval's own models give it, or ``sum``, as
            `mmframe evaluate` and lm-evaluation-harness compare options.
        expert_backend: auto, torch or cupy.
    """

    pretrained: str
    batch_size: int = 1
    device: str = "auto"
    dtype: str | None = None
    max_tiles: int | None = None
    system_prompt: str | None = None
    max_new_tokens: int = 1024
    stop_at_blank_line: bool = False
    loss: str = "mean"
    expert_backend: str = "auto"

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Options:
        """Arguments as the command line of lmms-eval gives them, or as Python does.

        Raises:
            UserError: one that is not known, missing or out of its range.
        """
        known = [field.name for field in fields(cls)]
        if wrong := [name for name in given if name not in known]:
            raise UserError(f"{NAME}: no argument {wrong[0]!r}; {suggest(wrong[0], known)}")
        if not given.get("pretrained"):
            raise UserError(f"{NAME}: which model? add pretrained=RUN_DIRECTORY to --model_args")
        read: dict[str, Any] = {**given, "pretrained": str(given["pretrained"])}
        for name in ("batch_size", "max_tiles", "max_new_tokens"):
            if name in read:
                read[name] = _whole(name, read[name])
        allowed = {"loss": ("mean", "sum"), "dtype": tuple(DTYPES), "expert_backend": ("auto", "torch", "cupy")}
        for name, values in allowed.items():
            if name in read and read[name] not in values:
                raise UserError(f"{NAME}: {name}={read[name]!r}; {suggest(str(read[name]), values)}")
        return cls(**read)

    def open(self) -> Served:
        """Loads the model.

        Raises:
            UserError: no such model or device, or what loading finds.
        """
        import torch

        device = self.device
        if device in ("auto", "cuda") and torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        dtype = None if self.dtype is None else DTYPES[self.dtype]
        flags = {"model": self.pretrained, "device": device, "dtype": dtype, "max_tiles": self.max_tiles}
        return open_model(Namespace(**flags, expert_backend=self.expert_backend))


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not str(value).isdigit() or int(value) < 1:
        raise UserError(f"{NAME}: {name}={value} must be a whole number from 1 on")
    return int(value)
