"""Which layers of a backbone something concerns, as recipes write it. No torch here."""

from __future__ import annotations

import re

from mmframe.errors import UserError

_LAYER = re.compile(r"backbone\.layers\.(\d+)\.")


def parse_layers(selector: str, num_layers: int, what: str = "router") -> tuple[int, ...]:
    """``all``, ``5``, ``12-23``, ``0-22/2`` (every second), ``-8--1`` (the last eight), ``0-3,8-11`` -> layer indices.

    Args:
        selector: As above.
        num_layers: Of the backbone; negative numbers count from its end.
        what: Asked for it; opens the messages.

    Raises:
        UserError: not of that form, or outside the model.
    """
    if selector == "all":
        return tuple(range(num_layers))
    chosen: set[int] = set()
    for piece in str(selector).split(","):
        match = re.fullmatch(r"(-?\d+)(?:-(-?\d+))?(?:/([1-9]\d*))?", piece.strip())
        if not match:
            raise UserError(f"{what}: layers {selector!r} not understood; use all, 5, 12-23, 0-22/2, -8--1 or 0-3,8-11")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        first, last = (i + num_layers if i < 0 else i for i in (first, last))
        if not 0 <= first <= last < num_layers:
            raise UserError(f"{what}: layers {selector!r} are outside the backbone's 0..{num_layers - 1}")
        chosen.update(range(first, last + 1, int(match[3] or 1)))
    return tuple(sorted(chosen))


def layer_of(name: str) -> int | None:
    """Backbone layer that a module or parameter name lies in; None for those outside of the layers."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def within_layers(names: list[str], selector: str, what: str) -> list[str]:
    """The names that are in the chosen layers, or in no layer of the backbone.

    Args:
        names: Of a model's modules or parameters.
        selector: As `parse_layers` reads it.
        what: Asked for it; opens the messages.

    Raises:
        UserError: `parse_layers` raises it.
    """
    if selector == "all":
        return names
    layers = {name: layer_of(name) for name in names}
    chosen = parse_layers(selector, 1 + max((n for n in layers.values() if n is not None), default=-1), what)
    return [name for name in names if layers[name] is None or layers[name] in chosen]
