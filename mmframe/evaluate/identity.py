"""Which model was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from mmframe.model import MultimodalLM
from mmframe.weights import weights_digest


@dataclass(frozen=True)
class Identity:
    """What a record says of a model.

    Attributes:
        source: Where it came from, as given.
        name: In tables and folders.
        weights: Digest of all tensors.
        dtype: Of the parameters; under autocast, what it computes in too.
        parameters: Their number.
    """

    source: str
    name: str
    weights: str
    dtype: str
    parameters: int

    @classmethod
    def of(cls, net: MultimodalLM, source: str = "", name: str = "") -> Identity:
        """Reads all weights once: of a large model make it once, not for each task."""
        first = next(net.parameters())
        device, dtype = first.device.type, str(first.dtype).removeprefix("torch.")
        if torch.is_autocast_enabled(device):
            dtype += " autocast " + str(torch.get_autocast_dtype(device)).removeprefix("torch.")
        size = sum(parameter.numel() for parameter in net.parameters())
        return cls(source, name or Path(source).name, weights_digest(net), dtype, size)
