"""What the options of a backbone may be: sections of the rotary frequencies, and new layers in front."""

from collections.abc import Sequence

import torch
from torch import nn

from mmframe.errors import UserError
from mmframe.geometry import check_option


def check_sections(given: Sequence[int] | None, frequencies: int) -> tuple[int, ...]:
    """Rotary frequencies for time, row and column.

    Args:
        given: The three numbers; None: a quarter for the time, the rest in halves (16, 24, 24 of 64 as Qwen2-VL).
        frequencies: Their sum, head_dim / 2.

    Raises:
        UserError: not three numbers, or another sum.
    """
    half = (frequencies - frequencies // 4) // 2
    sections = (frequencies - 2 * half, half, half) if given is None else tuple(given)
    if len(sections) != 3 or min(sections) < 0 or sum(sections) != frequencies:
        raise UserError(
            f"backbone: grid_sections={list(sections)} must be three numbers (time, row, column) whose sum is "
            f"head_dim / 2 = {frequencies}"
        )
    return sections


def check_pre_layers(count: int, init: str) -> int:
    """Returns the number of layers.

    Raises:
        UserError: it is negative, or the start is not known.
    """
    check_option("pre_layers_init", init, ("identity", "random"))
    if count < 0:
        raise UserError(f"backbone: pre_layers={count} must be at least 0")
    return count


@torch.no_grad()
def silence(module: nn.Module, parts: Sequence[str]) -> None:
    """Parameters whose names hold one of `parts` start as zero; layers without o and down add nothing."""
    for name, parameter in module.named_parameters():
        if any(part in name for part in parts):
            parameter.zero_()
