"""A rank that is gone: what torch.distributed says of it in many ways becomes one line and an exit code of its own."""

from __future__ import annotations

import torch.distributed as dist

from mmframe.errors import UserError

_SIGNS = (
    *("connection closed by peer", "connection reset", "connection refused", "broken pipe", "socket closed"),
    *("timed out waiting", "timed out after", "timeout waiting", "nccl", "application timeout", "recv failed"),
)


class RankLost(UserError):
    """Not a mistake of the user: the same command continues the run."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: try again."""


def lost_rank(error: BaseException | None) -> str | None:
    """What torch.distributed said, if an error came from another rank that is gone or does not answer."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None
    while error is not None:
        line = str(error).strip().splitlines()[0] if str(error).strip() else ""
        known = isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in _SIGNS)
        if isinstance(error, RuntimeError) and known:
            return line[-160:]
        error = error.__cause__ or error.__context__
    return None
