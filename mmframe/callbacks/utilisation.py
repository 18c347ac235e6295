"""MFU: operations that training really does in a second, over what the device could do."""

from __future__ import annotations

import functools
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from mmframe.callbacks.flops import Flops
from mmframe.callbacks.throughput import Throughput
from mmframe.planning.gpus import gpu

GPUS = {"H100 80GB HBM3": "h100", "H200": "h200", "A100": "a100"}
"""Part of a CUDA device's name -> its row in mmframe/planning/gpus.json. Its NVL cards have lower peaks."""
SIZE, TRIES = 768, 3


class Utilisation(Callback):
    """Logs `train/mfu` beside the throughput: FLOPs a second and rank, over the device's peak.

    FLOPs are those that were counted (mmframe.flops): what is frozen costs no gradient of its weights, so a stage that
    trains little is not flattered. Attention counts all pairs of a mask. Where layers are recomputed in the backward,
    that is counted too, and the name is `train/hfu` (of hardware, PaLM's terms, arXiv 2204.02311, appendix B).

    The peak is the table's for a known GPU in 16 bits; on a CPU, which has no honest figure on paper, the best of a few
    square matrix products at the start of the run, in the run's own precision and number of threads. On any other
    device nothing is logged, and that is said once.
    """

    def __init__(self) -> None:
        self.peak: float | None = None
        self.peak_from = ""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        throughput, flops = _one(trainer, Throughput), _one(trainer, Flops)
        if throughput is None or flops is None or not throughput.just_logged or not flops.counted_flops:
            return
        if not self.peak_from:
            begun = time.monotonic()
            self.peak, self.peak_from = peak_of(pl_module.device, str(trainer.precision))
            throughput.leave_out(time.monotonic() - begun)
            if self.peak is None and trainer.is_global_zero:
                print(f"train/mfu is not logged: {self.peak_from}")
        if self.peak is not None:
            name = "train/hfu" if getattr(pl_module, "recompute", False) else "train/mfu"
            rate = throughput.rate / trainer.world_size * flops.per_token
            pl_module.log(name, rate / self.peak, batch_size=1)


def peak_of(device: torch.device, precision: str) -> tuple[float | None, str]:
    """FLOP/s of one device and where that is from; None, and why, where it is not known."""
    if device.type == "cpu":
        dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
        return measured_peak(dtype), f"measured, {SIZE} x {SIZE} {dtype}"
    if device.type != "cuda":
        return None, f"no peak is known of a {device.type} device"
    name = torch.cuda.get_device_name(device)
    row = next((row for part, row in GPUS.items() if part in name and "NVL" not in name), None)
    if row is None:
        return None, f"{name} is not in mmframe/planning/gpus.json"
    if "16" not in precision:
        return None, f"the table of GPUs has peaks for 16 bits, and trainer.precision is {precision}"
    return gpu(row).flops, gpu(row).source


@functools.cache  # stages of one process share it
def measured_peak(dtype: torch.dtype) -> float:
    """The best of a few products of square matrices on this CPU, FLOP/s. Takes about 0.1 s."""
    # ones, not random numbers: the run's generators must not be touched
    a, b = (torch.ones(SIZE, SIZE, dtype=dtype) for _ in range(2))
    seconds = []
    with torch.no_grad():
        for _ in range(TRIES):
            begun = time.perf_counter()
            torch.mm(a, b)
            seconds.append(time.perf_counter() - begun)
    return 2 * SIZE**3 / min(seconds)


def _one(trainer: pl.Trainer, cls: type[Any]) -> Any:
    return next((c for c in trainer.callbacks if isinstance(c, cls)), None)  # type: ignore[attr-defined]
