"""The keys `checkpoints:` and `faults:` of a recipe: what is kept, and what happens when something goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from mmframe.errors import UserError, suggest


@dataclass(frozen=True)
class Checkpoints:
    """Which checkpoints stay, beside `checkpoint_every`.

    Attributes:
        keep_last: So many of the newest; at least 2, so that there is one before a damaged one.
        keep_every: Those of every so many steps stay for good; 0: none.
        best: Metric of the validation, such as val/loss, whose best checkpoints stay as best-N.ckpt.
        keep_best: How many of them.
        mode: Whether less or more of it is better.
        background: Write in a thread from a copy in memory, while training goes on.
    """

    keep_last: int = 2
    keep_every: int = 0
    best: str | None = None
    keep_best: int = 1
    mode: Literal["min", "max"] = "min"
    background: bool = False

    def __post_init__(self) -> None:
        _at_least("checkpoints", self, keep_last=2, keep_every=0, keep_best=1)


@dataclass(frozen=True)
class Faults:
    """What a run does when something goes wrong.

    Attributes:
        nonfinite: A loss or gradient that is NaN or infinite. stop: ends before the weights are touched, and keeps
            batches and weights for `mmframe replay`; skip: goes on without the step.
        spike: A loss above `spike_factor` times the median of the last `spike_window` steps. warn: says so; skip: goes
            on without the step; stop: as a loss that is not finite; off: is not looked at.
        spike_window: Steps; nothing is judged before so many are there.
        spike_factor: Times the median.
        data_timeout: Seconds that a loader process may take for a batch; 0: no limit.
        rank_timeout: Seconds that ranks wait for one another.
    """

    nonfinite: Literal["stop", "skip"] = "stop"
    spike: Literal["off", "warn", "skip", "stop"] = "off"
    spike_window: int = 100
    spike_factor: float = 3.0
    data_timeout: float = 600.0
    rank_timeout: float = 1800.0

    def __post_init__(self) -> None:
        _at_least("faults", self, spike_window=2, spike_factor=1, data_timeout=0, rank_timeout=1)


def _at_least(key: str, settings: Any, **least: float) -> None:
    for name, value in least.items():
        if getattr(settings, name) < value:
            raise UserError(f"{key}.{name}: must be at least {value}, got {getattr(settings, name)}")


def read_checkpoints(config: dict[str, Any]) -> Checkpoints:
    """The key of a resolved configuration; UserError for a mistake in it."""
    return _read(Checkpoints, "checkpoints", config)


def read_faults(config: dict[str, Any]) -> Faults:
    """The key of a resolved configuration; UserError for a mistake in it."""
    return _read(Faults, "faults", config)


def _read(cls: type, key: str, config: dict[str, Any]) -> Any:
    given = config.get(key) or {}
    if not isinstance(given, dict):
        raise UserError(f"{key}: expected a mapping of keys, got {given!r}")
    types = get_type_hints(cls)
    names = [field.name for field in fields(cls)]
    values = {}
    for name, value in given.items():
        if name not in names:
            raise UserError(f"{key}.{name}: unknown key {name!r}; {suggest(str(name), names)}")
        if allowed := get_args(types[name]) if types[name] != (str | None) else ():
            value = "off" if value is False and "off" in allowed else value  # YAML reads a bare off as false
            if value not in allowed:
                raise UserError(f"{key}.{name}: {value!r} is not one of the allowed values; {suggest('', allowed)}")
        elif not _fits(value, types[name]):
            raise UserError(f"{key}.{name}: expected {getattr(types[name], '__name__', 'text')}, got {value!r}")
        values[name] = value
    return cls(**values)


def _fits(value: Any, kind: Any) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return value is None or isinstance(value, str)
