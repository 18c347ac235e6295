"""The most memory that something takes beyond what it starts with, counted by the allocators themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """Peak of the bytes that torch's allocator of a device gave out during `run`, beyond those it had given out before.

    Args:
        run: Once; what it returns is dropped after the peak was taken.
        device: cpu or cuda.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    return _peak(recorded)


def _peak(recorded: Any) -> int:
    """From the profiler's records of every allocation and release on the CPU."""
    now = most = 0
    events = list(recorded.profiler.kineto_results.experimental_event_tree())
    changes = []
    while events:
        event = events.pop()
        events += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    for _, size in sorted(changes):
        now += size
        most = max(most, now)
    return most
