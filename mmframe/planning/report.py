"""The plan as a person reads it. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

GB = 1e9


def told(plan: dict[str, Any]) -> str:
    """Tables: parameters, operations and length, memory, data, inference."""
    unit, stages = plan["gpu"], plan["stages"]
    lines = [
        f"plan of {plan['recipe']} on {plan['gpus']} x {unit['name']} "
        f"({unit['flops'] / 1e12:,.4g} TFLOP/s, {unit['memory'] / GB:,.0f} GB, {unit['bandwidth'] / 1e12:.3g} TB/s) "
        f"at {100 * plan['mfu']:.0f} % MFU",
    ]
    lines += [f"  {name or 'rows'}: {stage['rows']['known_from']}" for name, stage in stages.items()]
    lines += ["", *_parameters(stages), "", *_operations(stages), "", *_length(plan), "", *_memory(plan), ""]
    lines += [*_data(stages), "", *_inference(plan)]
    lines += [f"not counted in {n}: {x}" for n, s in stages.items() for x in s["flops"]["not_counted"]]
    return "\n".join(lines)


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """Columns as wide as they need; the first one to the left, the others to the right."""
    widths = [max(len(line[n]) for line in [heads, *rows]) for n in range(len(heads))]
    return ["  ".join(_padded(line, widths)).rstrip() for line in [heads, *rows]]


def _padded(line: list[str], widths: list[int]) -> list[str]:
    return [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]


def _by_stage(title: str, stages: dict[str, Any], rows: dict[str, Callable[[dict[str, Any]], str]]) -> list[str]:
    """A row a fact, a column a stage."""
    body = [[name, *(value(stage) for stage in stages.values())] for name, value in rows.items()]
    return table([title, *(name or "all" for name in stages)], body)


def _parameters(stages: dict[str, Any]) -> list[str]:
    parts = list(dict.fromkeys(part for s in stages.values() for part in s["parameters"]["by_component"]))

    def part_of(part: str) -> Callable[[dict[str, Any]], str]:
        def value(stage: dict[str, Any]) -> str:
            found = stage["parameters"]["by_component"].get(part)
            if found is None:
                return "-"
            trains = "" if not found["trainable"] else " *" if found["trainable"] == found["total"] else " (*)"
            return f"{found['total']:,}{trains}"

        return value

    rows = {part: part_of(part) for part in parts}
    rows |= {key: lambda s, key=key: f"{s['parameters'][key]:,}" for key in ("total", "trainable", "active")}
    return _by_stage("parameters (* trains)", stages, rows)


def _operations(stages: dict[str, Any]) -> list[str]:
    def kind(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda s: _si(s["flops"]["a_token_by_kind"][name])

    return _by_stage(
        "FLOP a token, mean",
        stages,
        {
            "forward": lambda s: _si(s["flops"]["forward_a_token"]),
            "backward": lambda s: _si(s["flops"]["backward_a_token"]),
            "once more, checkpointed": lambda s: _si(s["flops"]["recomputed_a_token"]),
            "an image token": kind("image"),
            "a text token": kind("text"),
            "and its attention": kind("scores"),
            "and the head, if learnt": kind("supervised"),
        },
    )


def _length(plan: dict[str, Any]) -> list[str]:
    stages = plan["stages"]
    lines = _by_stage(
        "training",
        stages,
        {
            "steps": lambda s: f"{s['run']['steps']:,}",
            "rows a step": lambda s: f"{s['run']['rows_a_step']:,}",
            "micro-batch x accumulated": lambda s: f"{s['run']['micro_batch']} x {s['run']['accumulate']}",
            "tokens a row": lambda s: f"{s['rows']['tokens']:,.0f}",
            "of these image": lambda s: f"{s['rows']['image_tokens']:,.0f}",
            "records": lambda s: _big(s["run"]["samples"]),
            "tokens": lambda s: _big(s["run"]["tokens"]),
            "FLOP": lambda s: _si(s["run"]["flops"]),
            "days": lambda s: f"{s['run']['days']:,.3g}",
            "GPU-hours": lambda s: f"{s['run']['gpu_hours']:,.4g}",
        },
    )
    t = plan["total"]
    return [
        *lines,
        f"in all: {_big(t['samples'])} records, {_big(t['tokens'])} tokens, {_si(t['flops'])}FLOP, "
        f"{t['days']:,.3g} days, {t['gpu_hours']:,.4g} GPU-hours",
    ]


def _memory(plan: dict[str, Any]) -> list[str]:
    heads = ["GB on a GPU", "checkpointing", "weights", "gradients", "optimizer", "a step", "in all", "", "most tokens"]
    rows = []
    for name, stage in plan["stages"].items():
        for strategy, kinds in stage["memory"].items():
            for kind, need in kinds.items():
                sizes = [f"{need[key] / GB:.1f}" for key in ("weights", "gradients", "optimizer", "step", "total")]
                most = need["largest_micro_batch"]
                rows.append(
                    [f"{name} {strategy}".strip(), "every layer" if kind == "checkpointed" else "none", *sizes,
                     "fits" if need["fits"] else "NO", f"{most['tokens']:,} ({most['rows']:,} rows)"]
                )  # fmt: skip
    return table(heads, rows)


def _data(stages: dict[str, Any]) -> list[str]:
    return _by_stage(
        "data",
        stages,
        {
            "pictures": lambda s: _si(s["data"]["picture_bytes"]) + "B",
            "text": lambda s: _si(s["data"]["text_bytes"]) + "B",
            "read": lambda s: _si(s["data"]["bytes_a_second"]) + "B/s",
            "tiles/s": lambda s: f"{s['data']['tiles_a_second']:,.4g}",
            "loader cores": lambda s: f"{s['data']['loader_cores']:,.3g}",
            "loader cores a GPU": lambda s: f"{s['data']['loader_cores_a_gpu']:,.2g}",
        },
    )


def _inference(plan: dict[str, Any]) -> list[str]:
    found = plan["inference"]
    return [
        f"generation at the roofline of {plan['gpu']['name']}, bf16, one row: a prompt of {found['prompt']:,} tokens "
        f"gives its first token after {1e3 * found['first_token']:.3g} ms, then {found['decode']:,.4g} tokens/s",
        f"  a text token reads {_si(found['text_weights'])}B of weights, and {_si(found['cache_a_token'])}B of cache "
        "for each token before it",
    ]


def _si(number: float) -> str:
    """4.47e9 -> `4.47 G`."""
    for size, letter in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:,.3g} {letter}"
    return f"{number:,.3g} "


def _big(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:,.4g} {letter}"
    return f"{number:,.0f}"
