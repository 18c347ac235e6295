"""One job: a stage and all that its run needs to know. Plain data, so it can cross to another process."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmframe.cli.run_dir import RunDir


@dataclass(frozen=True)
class Handover:
    """What the chain tells a stage.

    Args:
        recipe: Name of the recipe.
        stage: Name of the stage; None for a recipe without stages.
        index: Its number, from 1.
        count: Stages of the recipe.
        init_from: weights.safetensors of the stage before.
        started_from: Identity of those weights.
        steps_before: Optimiser steps of the stages before.
        steps_total: Optimiser steps of all stages; 0 when not every stage sets max_steps.
        resume: The checkpoint that the stage goes on from, found whole by the chain.
        parent: Process id of the chain; the stage stops when that process ends.
    """

    recipe: str = ""
    stage: str | None = None
    index: int = 1
    count: int = 1
    init_from: str | None = None
    started_from: str | None = None
    steps_before: int = 0
    steps_total: int = 0
    resume: str | None = None
    parent: int | None = None

    def to_json(self) -> str:
        return json.dumps({k: v for k, v in dataclasses.asdict(self).items() if v is not None})

    @classmethod
    def from_json(cls, text: str | None) -> Handover:
        return cls(**json.loads(text)) if text else cls()


@dataclass(frozen=True)
class Job:
    """A run of one stage.

    Args:
        command: fit, validate, test or predict.
        config: Resolved configuration, checked.
        run: Its directory.
        handover: Place in the chain.
        resume: Continue from this checkpoint.
        debug: Show tracebacks.
    """

    command: str
    config: dict[str, Any]
    run: RunDir
    handover: Handover = field(default_factory=Handover)
    resume: Path | None = None
    debug: bool = False

    @property
    def label(self) -> str:
        """e.g. "[2/4 s1_2_semantic]"."""
        at = self.handover
        return f"[{at.index}/{at.count} {at.stage}]" if at.stage else f"[{at.recipe}]"
