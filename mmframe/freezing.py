"""Applies a freezing policy, parameter by parameter, and reports what trains."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from mmframe.contracts import TrainableGroup
from mmframe.errors import UserError, nearest
from mmframe.layers import within_layers


@dataclass(frozen=True)
class Row:
    """One line of the report: tensors of one component in one group."""

    component: str
    tensors: int
    parameters: int
    group: str | None
    lr: float | None


@dataclass(frozen=True)
class FreezingReport:
    """What trains. `group_of` maps each trainable parameter's name to its group."""

    rows: tuple[Row, ...]
    group_of: dict[str, str]

    @property
    def trainable(self) -> int:
        return sum(row.parameters for row in self.rows if row.group)

    @property
    def total(self) -> int:
        return sum(row.parameters for row in self.rows)

    def __str__(self) -> str:
        lines = [f"{'component':<24}{'tensors':>8}{'parameters':>14}  {'trains':<12}{'lr':>8}"]
        for row in self.rows:
            lr = "" if row.lr is None else f"{row.lr:.1e}"
            lines.append(
                f"{row.component:<24}{row.tensors:>8}{row.parameters:>14,}  {row.group or 'frozen':<12}{lr:>8}"
            )
        share = 100 * self.trainable / max(1, self.total)
        lines.append(f"{'total':<24}{'':>8}{self.total:>14,}  {self.trainable:,} trainable ({share:.1f} %)")
        return "\n".join(lines)


def component_of(name: str) -> str:
    """Human name of the part a parameter belongs to: ``backbone.layers.3.ffn.visual.up.weight`` -> ``ffn, visual``."""
    if match := re.match(r"backbone\.(pre_)?layers\.\d+\.(\w+)\.(\w+)\.", name):
        pre, site, expert = match.groups()
        part = "norms" if site.endswith("norm") else "attention" if site in "qkvo" else site
        return f"pre-layers, {part}" if pre else f"{part}, {expert}"
    return {"embedding": "token embedding", "norm": "final norm", "output": "head"}.get(
        name.split(".")[1] if name.startswith("backbone.") else "", name.split(".")[0].replace("_", " ")
    )


def freeze(model: nn.Module, groups: Mapping[str, TrainableGroup]) -> FreezingReport:
    """Sets requires_grad of every parameter: trainable where one group matches, frozen elsewhere.

    Raises:
        UserError: a pattern that matches nothing, or a parameter that two groups claim.
    """
    names = [name for name, _ in model.named_parameters()]
    group_of: dict[str, str] = {}
    for group, spec in groups.items():
        if isinstance(spec.match, str):
            raise UserError(f"freezing: group {group!r}: match must be a list of patterns, got {spec.match!r}")
        within = within_layers(names, spec.layers, f"freezing: group {group!r}")
        for pattern in spec.match:
            matched = [name for name in within if fnmatchcase(name, pattern)]
            if not matched:
                where = "" if spec.layers == "all" else f" in layers {spec.layers}"
                raise UserError(
                    f"freezing: pattern {pattern!r} of group {group!r} matches no parameter{where}; "
                    f"{nearest(pattern, _shapes_of_names(within))} see `mmframe components show` of the policy"
                )
            for name in matched:
                if group_of.setdefault(name, group) != group:
                    raise UserError(f"freezing: {name} is claimed by groups {group_of[name]!r} and {group!r}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in group_of)
    return FreezingReport(tuple(_rows(model, groups, group_of)), group_of)


def _shapes_of_names(names: list[str]) -> list[str]:
    """Names with layer numbers as *: what a pattern was probably meant to be."""
    return sorted({re.sub(r"\.\d+\.", ".*.", name) for name in names})


def _rows(model: nn.Module, groups: Mapping[str, TrainableGroup], group_of: dict[str, str]) -> Iterator[Row]:
    counts: dict[tuple[str, str | None], list[int]] = {}
    for name, parameter in model.named_parameters():
        entry = counts.setdefault((component_of(name), group_of.get(name)), [0, 0])
        entry[0] += 1
        entry[1] += parameter.numel()
    for (component, group), (tensors, parameters) in counts.items():
        yield Row(component, tensors, parameters, group, groups[group].lr if group else None)
