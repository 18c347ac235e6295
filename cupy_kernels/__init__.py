"""Fused expert kernels: the contract, for now. See README.md for what a backend has to provide."""

from __future__ import annotations

__all__ = ["why_not"]


def why_not() -> str | None:
    """Why the fused kernels cannot run here, in one clause; None where they can."""
    return "the fused kernels are not part of this version"
