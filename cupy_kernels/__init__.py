"""Fused experts in CUDA, for batches whose tokens belong to two experts; usable without mmframe.

    from cupy_kernels import why_not
    from cupy_kernels.ops import decode_ffn, ffn, project
    from cupy_kernels.tiles import TileTable

Importing needs no GPU, no driver and no CuPy; `why_not()` says whether the kernels can run here. The design is in
README.md.
"""

from __future__ import annotations

__all__ = ["why_not"]


def why_not() -> str | None:
    """Why the fused kernels cannot run here, in one clause; None where they can."""
    from cupy_kernels.launch import why_not

    return why_not()
