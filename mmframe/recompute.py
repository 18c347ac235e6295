"""Activation checkpointing: what a layer computed is forgotten after the forward and computed again in the backward.

Memory of a layer's activations falls to its input [T, D]; time grows by one forward, a third of the step where all
trains. The numbers stay the same to the last bit: the same operations run on the same values (Chen et al.,
arXiv 1604.06174).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop


def recomputed(function: Callable[..., Any], *args: Any, to_the_end: bool = False) -> Any:
    """function(*args), whose intermediate results are computed again in the backward; without gradients: once.

    Args:
        function: A pure function of its arguments and of parameters.
        args: Its arguments.
        to_the_end: The second run does not stop where all that is needed is there, so that hooks of modules inside see
            every call to its end (FSDP2's do).
    """
    if not torch.is_grad_enabled():
        return function(*args)
    with set_checkpoint_early_stop(False) if to_the_end else nullcontext():
        return checkpoint(function, *args, use_reentrant=False)


def recompute_layers(layers: Iterable[nn.Module], to_the_end: bool = False) -> None:
    """Makes every layer a segment that is computed again; names, parameters and hooks stay as they are."""
    for layer in layers:
        layer.forward = functools.partial(recomputed, layer.forward, to_the_end=to_the_end)
