"""ZeRO-1 with torch alone (arXiv 1910.02054). A file of its own: what it imports takes long, and few need it."""

from __future__ import annotations

from typing import Any

from torch.distributed.optim import ZeroRedundancyOptimizer

from mmframe.optim import MasterAdamW


class SpreadAdamW(ZeroRedundancyOptimizer):
    """MasterAdamW of which every rank has a share: it steps its own parameters and sends them to the others."""

    def __init__(self, params: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__(params, optimizer_class=MasterAdamW, **settings)
