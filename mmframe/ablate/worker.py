"""One run of a grid in this process: trains every stage, then measures the final weights."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

from mmframe.ablate.grid import Grid
from mmframe.ablate.plan import Run
from mmframe.ablate.run_folder import RunFolder
from mmframe.cli.arguments import RunArguments
from mmframe.cli.chain import fit
from mmframe.errors import UserError


def work(grid: Grid, run: Run, results: Path, keep: bool = False) -> int:
    """Trains and measures; goes on where an earlier attempt stopped.

    Args:
        grid: The run's.
        run: To do.
        results: Folder of all results.
        keep: Leave checkpoints and the weights of all stages.

    Returns:
        Exit code of the training, 0 when all is done.

    Raises:
        Busy: another process is at this run.
        UserError: the user's mistakes.
    """
    folder = RunFolder(results, run)
    with folder.locked():
        code = fit(RunArguments("fit", run_dir=folder.path, switches={"--in-process"}), run.recipe)
        if code:
            return code
        measure(grid, folder)
        if not keep:
            folder.tidy()
        folder.failure.unlink(missing_ok=True)
    return 0


def measure(grid: Grid, folder: RunFolder) -> None:
    """Asks the evaluators that have not been asked about these weights.

    Raises:
        UserError: an evaluator gives what is no number.
    """
    waiting = {name: spec for name, spec in grid.evaluators.items() if folder.measured(spec) is None}
    model = _load(folder) if waiting else None
    for name, spec in waiting.items():
        begun = time.monotonic()
        values, held_out = _ask(model, spec)
        bad = [key for key, value in values.items() if not math.isfinite(value)]
        if bad:
            raise UserError(f"evaluators.{name}: {bad[0]} is {values[bad[0]]}, no finite number")
        folder.write_measured(spec, values, held_out, time.monotonic() - begun)
        print(f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in values.items())}", file=sys.stderr)


def _load(folder: RunFolder) -> Any:
    import torch

    from mmframe import registry
    from mmframe.loading import load

    registry.discover()
    accelerator = (list(folder.run.configs.values())[-1].get("trainer") or {}).get("accelerator", "auto")
    device = "cuda" if torch.cuda.is_available() and accelerator != "cpu" else "cpu"
    return load(folder.last.weights, device)


def _ask(model: Any, spec: dict[str, Any]) -> tuple[dict[str, float], str]:
    """Figures, and the fingerprint of the files that they were measured on."""
    import torch

    from mmframe.cli.lightning_cli import qualify
    from mmframe.data.files import content_digest
    from mmframe.loading import build

    evaluator = build(qualify(spec))
    held_out = content_digest(evaluator.files())
    torch.manual_seed(0)
    with torch.no_grad():
        found = evaluator.evaluate(model)
    return {str(key): float(value) for key, value in found.items()}, held_out
