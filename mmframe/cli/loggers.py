"""Where a run is logged beside its metrics.jsonl: what W&B is told, so that naming it is enough."""

from __future__ import annotations

import uuid
from importlib.util import find_spec
from typing import Any

from mmframe.cli.job import Job
from mmframe.cli.run_dir import is_rank_zero, write_atomically
from mmframe.errors import UserError

WANDB = "WandbLogger"


def filled_in(given: Any, job: Job) -> Any:
    """`trainer.logger` with what follows from the run put in; what the recipe says stays.

    A WandbLogger without arguments writes into the run directory, is named RECIPE/STAGE in the project "mmframe", its
    stages are one group, and a run that is continued goes on in the same W&B run (its id stands in wandb_id.txt).

    Raises:
        UserError: W&B is asked for and not installed.
    """
    if isinstance(given, list):
        return [filled_in(one, job) for one in given]
    spec: Any = {"class_path": given} if isinstance(given, str) else given
    if not isinstance(spec, dict) or str(spec.get("class_path")).rpartition(".")[2] != WANDB:
        return given
    if find_spec("wandb") is None:
        raise UserError("trainer.logger: W&B is not installed; pip install 'mmframe[wandb]'")
    name = "/".join(word for word in (job.handover.recipe, job.handover.stage) if word)
    own = {
        "save_dir": str(job.run.path),
        "project": "mmframe",
        "name": name or job.run.path.name,
        "group": job.handover.recipe or None,
        "id": _wandb_id(job),
        "resume": "allow",
    }
    return {
        "class_path": f"lightning.pytorch.loggers.{WANDB}",
        # of the arguments that Lightning's logger hands on, its signature does not tell: they are one dictionary
        "init_args": {k: v for k, v in own.items() if k in ("save_dir", "project", "name", "id")}
        | (spec.get("init_args") or {}),
        "dict_kwargs": {k: own[k] for k in ("group", "resume")} | (spec.get("dict_kwargs") or {}),
    }


def _wandb_id(job: Job) -> str | None:
    """One for each run directory, so that a continued run finds it, and one that starts over does not."""
    if not is_rank_zero():
        return None
    file = job.run.path / "wandb_id.txt"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, uuid.uuid4().hex[:12] + "\n")
    return file.read_text(encoding="utf-8").strip()
