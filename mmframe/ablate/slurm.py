"""A sweep as a SLURM job array: a script, and a list with a command for each run. No torch."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from mmframe.ablate.plan import Run

_SCRIPT = """#!/bin/bash
# {name}: {count} runs; sbatch {script}
# Set partition, account and time as your cluster wants them. A run that is stopped or requeued goes on from its
# checkpoint. When all have ended, `{collect}` finds them done and writes the table.
#SBATCH --job-name={name}
#SBATCH --array=1-{count}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={cpus}
{gpus}#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --output={logs}/%x-%A_%a.log
set -eu
cd {folder}
export OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"
srun bash -c "exec $(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {list})"
"""


def write_array(file: Path, name: str, runs: Sequence[Run], command: Sequence[str], gpu: bool, results: Path) -> Path:
    """Writes the script and, beside it, the list of runs.

    Args:
        file: The script.
        name: Of the job.
        runs: One task of the array each.
        command: Words of `mmframe ablate GRID ...`; a run is that with --run.
        gpu: Whether a task asks for a GPU.
        results: Folder of all results.

    Returns:
        The list: one line a run, each of which runs by itself.
    """
    listed = file.with_suffix(".runs")
    lines = [f"{shlex.join([*command, '--run', run.hash])}  # {run.id}" for run in runs]
    file.parent.mkdir(parents=True, exist_ok=True)
    results.mkdir(parents=True, exist_ok=True)
    listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    script = _SCRIPT.format(
        name=name,
        count=len(runs),
        script=file,
        collect=shlex.join(command),
        cpus=8 if gpu else 2,
        gpus="#SBATCH --gres=gpu:1\n" if gpu else "",
        logs=results,
        folder=shlex.quote(os.getcwd()),
        list=shlex.quote(str(listed)),
    )
    file.write_text(script, encoding="utf-8")
    file.chmod(0o755)
    return listed
