"""Slots: how many runs go at once, and what of the machine each of them sees. No torch."""

from __future__ import annotations

import os
import shutil
import subprocess

from mmframe.errors import UserError


def slots(jobs: int | None, wants_gpu: bool) -> list[dict[str, str]]:
    """Environment variables of each slot.

    On GPUs a run for each of them, which sees no other; with more jobs than GPUs they share, evenly. On CPUs one run,
    or as many as asked for; the cores are split evenly, unless OMP_NUM_THREADS is set already.

    Args:
        jobs: Runs at once; None: as many as there are GPUs, or one.
        wants_gpu: Whether the recipes leave it open, or say, that they train on GPUs.
    """
    gpus = visible_gpus() if wants_gpu else []
    count = jobs or max(1, len(gpus))
    cores = usable_cores()
    if count > cores:
        raise UserError(f"ablate: --jobs={count} is more than this machine has cores ({cores})")
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // count))}
    return [threads | ({"CUDA_VISIBLE_DEVICES": gpus[n % len(gpus)]} if gpus else {}) for n in range(count)]


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the GPUs that this process may use."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() and name.strip() != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(n) for n in range(sum(line.startswith("GPU ") for line in told.stdout.splitlines()))]
