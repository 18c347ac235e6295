"""The plan of one stage, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from mmframe.ablate.budget import ranks
from mmframe.cli.data_job import component
from mmframe.errors import UserError
from mmframe.experts import active_parameters
from mmframe.objectives import NextToken
from mmframe.planning.gpus import Gpu, tiles_of_a_core
from mmframe.planning.inference import roofline
from mmframe.planning.memory import STRATEGIES, USABLE, ModelBytes
from mmframe.planning.model import count, meta_model
from mmframe.planning.operations import by_component, by_kind, forward_of_prompt
from mmframe.planning.rows import Assumptions, StageRows, stage_rows
from mmframe.planning.trace import StepTrace, trace_step

DAY = 86400.0
TEXT_BYTES = 4
"""Of a text token on the disk: an assumption."""


@dataclass(frozen=True)
class Setting:
    """What the plan is for.

    Args:
        unit: The GPU.
        gpus: How many.
        mfu: FLOPs that the model needs over what the GPUs could do in the time; recomputation does not count as needed.
        strategies: Whose memory is computed.
    """

    unit: Gpu
    gpus: int
    mfu: float
    strategies: tuple[str, ...] = STRATEGIES


def plan_stage(name: str, config: dict[str, Any], setting: Setting, assumed: Assumptions) -> dict[str, Any]:
    """Parameters, operations, memory, length and data of one resolved stage.

    Args:
        name: For messages.
        config: With full class paths.
        setting: GPUs.
        assumed: Of records, where the data is not looked at.

    Raises:
        UserError: the model or the data is wrong, the number of steps is not known, or a step does not divide.
    """
    model, trainer = config["model"], config.get("trainer") or {}
    net, report = meta_model(model)
    precision = str(trainer.get("precision") or "32-true")
    net.to(torch.bfloat16 if "bf16" in precision else torch.float32)
    rows = stage_rows(config, assumed)
    length = _length(name, trainer, rows, setting.gpus)
    objective = component(model["objective"]) if model.get("objective") else NextToken()
    traced = length["micro_batch"]
    batch = rows.batch(traced)
    steps = {
        kind: trace_step(net, objective, batch, setting.unit.device, kind == "checkpointed")
        for kind in ("plain", "checkpointed")
    }
    plain, checkpointed = steps["plain"], steps["checkpointed"]
    per_token = (plain.forward + plain.backward) / plain.tokens
    flops = per_token * rows.tokens * length["steps"] * length["rows_a_step"]
    seconds = flops / (setting.gpus * setting.unit.flops * setting.mfu)
    mixed = "mixed" in precision
    if mixed:
        net.float()
    needs = ModelBytes.of(net, report, mixed)
    prompt = round(rows.tokens / rows.records)
    left_out = sorted(model.get("auxiliary") or {})
    return {
        "parameters": _parameters(net, report),
        "rows": {key: value for key, value in vars(rows).items() if key != "samples"},
        "run": length
        | {
            "samples": rows.records * length["rows_a_step"] * length["steps"],
            "tokens": rows.tokens * length["rows_a_step"] * length["steps"],
            "flops": flops,
            "days": seconds / DAY,
            "gpu_hours": setting.gpus * seconds / 3600,
        },
        "flops": {
            "forward_a_token": plain.forward / plain.tokens,
            "backward_a_token": plain.backward / plain.tokens,
            "recomputed_a_token": (checkpointed.backward - plain.backward) / plain.tokens,
            "a_token_by_kind": by_kind(plain),
            "a_token_by_component": {
                part: {way: cost / plain.tokens for way, cost in ways.items()}
                for part, ways in by_component(plain).items()
            },
            "not_counted": [f"auxiliary loss {loss}" for loss in left_out],
        },
        "memory": _memory(needs, steps, traced, setting),
        "data": _data(rows, length, seconds, setting.gpus),
        "inference": asdict(roofline(net, prompt, forward_of_prompt(plain, traced * rows.records), setting.unit)),
    }


def _parameters(net: Any, report: Any) -> dict[str, Any]:
    parts: dict[str, dict[str, int]] = {}
    for row in report.rows:
        part = parts.setdefault(row.component, {"total": 0, "trainable": 0})
        part["total"] += row.parameters
        part["trainable"] += row.parameters if row.group else 0
    total = {"total": count(net), "trainable": report.trainable, "active": active_parameters(net)}
    return total | {"by_component": parts}


def _length(name: str, trainer: dict[str, Any], rows: StageRows, gpus: int) -> dict[str, int]:
    """Steps of the recipe and rows of each, dealt out over the GPUs of the plan: what is learnt stays the same."""
    devices = trainer.get("devices", "auto")
    of_recipe = ranks(trainer) if isinstance(devices, list) or (isinstance(devices, int) and devices > 0) else gpus
    at_once = rows.batch_size * (trainer.get("accumulate_grad_batches") or 1) * of_recipe
    if at_once % gpus:
        raise UserError(
            f"plan: stage {name}: a step has {at_once:,} rows ({rows.batch_size} x "
            f"{trainer.get('accumulate_grad_batches') or 1} batches x {of_recipe} devices), which do not divide over "
            f"{gpus} GPUs; take a divisor of {at_once:,}, or set data.batch_size"
        )
    each = at_once // gpus
    micro = next(size for size in range(min(rows.batch_size, each), 0, -1) if each % size == 0)
    steps, epochs = trainer.get("max_steps") or -1, trainer.get("max_epochs")
    if epochs not in (None, -1) and rows.of_epoch is not None:
        of_epochs = epochs * -(-rows.of_epoch // at_once)
        steps = of_epochs if steps < 0 else min(steps, of_epochs)
    if steps <= 0:
        raise UserError(
            f"plan: stage {name}: the number of steps is not known; set it (--trainer.max_steps=N), or let the rows of "
            "an epoch be counted (trainer.max_epochs with --measure)"
        )
    return {"steps": steps, "rows_a_step": at_once, "micro_batch": micro, "accumulate": each // micro}


def _memory(needs: ModelBytes, steps: dict[str, StepTrace], rows: int, setting: Setting) -> dict[str, Any]:
    """Bytes on one GPU for each strategy and kind of step of so many rows, and the most that fit."""
    found: dict[str, Any] = {}
    for strategy in ("single",) if setting.gpus == 1 else setting.strategies:
        found[strategy] = {}
        for kind, trace in steps.items():
            need = needs.need(strategy, setting.gpus, trace)
            most = needs.largest(strategy, setting.gpus, trace, setting.unit.memory)
            found[strategy][kind] = asdict(need) | {
                "fits": need.total <= USABLE * setting.unit.memory,
                "largest_micro_batch": {"rows": int(most * rows), "tokens": int(most * trace.tokens)},
            }
    return found


def _data(rows: StageRows, length: dict[str, int], seconds: float, gpus: int) -> dict[str, float]:
    """Bytes that are read, and cores that make tiles ready as fast as the GPUs take them."""
    seen = length["steps"] * length["rows_a_step"]
    tiles = seen * rows.tiles
    text = seen * (rows.tokens - rows.image_tokens) * TEXT_BYTES
    return {
        "picture_bytes": seen * rows.picture_bytes,
        "text_bytes": text,
        "bytes_a_second": (seen * rows.picture_bytes + text) / seconds,
        "tiles_a_second": tiles / seconds,
        "loader_cores": tiles / seconds / tiles_of_a_core(),
        "loader_cores_a_gpu": tiles / seconds / tiles_of_a_core() / gpus,
    }
