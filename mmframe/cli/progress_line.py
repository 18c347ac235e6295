"""A line of progress: rewritten on a terminal, a line now and then in a log file. And how its numbers are written."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO


class ProgressLine:
    """Writes e.g. `[#####.......] 37/100  0:41 left` to a stream.

    Args:
        stream: Where; default: stderr.
        seconds: Between two updates on a terminal.
        log_seconds: Between two lines in a file.
    """

    def __init__(self, stream: TextIO | None = None, seconds: float = 0.2, log_seconds: float = 10.0) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.terminal = self.stream.isatty()
        self._interval = seconds if self.terminal else log_seconds
        self._shown = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for another update."""
        return time.monotonic() - self._shown >= self._interval

    def update(self, text: str, last: bool = False) -> None:
        """Shows `text` now; `last` leaves it standing."""
        self._shown = time.monotonic()
        rewrite(self.stream, text, self.terminal, last)

    def tell(self, text: str) -> None:
        """Writes a line that stays, above the progress."""
        self.stream.write(("\r\033[K" if self.terminal else "") + text + "\n")
        self.stream.flush()


def rewrite(stream: TextIO, text: str, terminal: bool, last: bool = False) -> None:
    """Puts `text` in place of the terminal's current line; in a file it is one more line."""
    if terminal:
        width = shutil.get_terminal_size().columns - 1
        stream.write("\r\033[K" + text[:width] + ("\n" if last else ""))
    else:
        stream.write(text + "\n")
    stream.flush()


def bar(done: int, of: int, width: int = 20) -> str:
    """e.g. [#####...............] 37/148."""
    full = width * done // max(1, of)
    return f"[{'#' * full}{'.' * (width - full)}] {done}/{of}"


def short(number: float) -> str:
    """950, 1.2k, 34k, 1.2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.{1 if number < 10 * size else 0}f}{unit}"
    return f"{number:.0f}"


def clock(seconds: float) -> str:
    """0:41, 12:05, 3:20:00."""
    total = int(max(seconds, 0))
    hours, minutes = total // 3600, total % 3600 // 60
    return f"{hours}:{minutes:02d}:{total % 60:02d}" if hours else f"{minutes}:{total % 60:02d}"


def age(seconds: float) -> str:
    """12 s, 5 min, 3 h, 8 d."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def sparkline(values: Sequence[float], width: int = 20) -> str:
    """Values as a row of bars, lowest to highest; many are averaged into `width` groups, in order."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    width = min(width, len(known))
    groups = [known[len(known) * i // width : len(known) * (i + 1) // width] for i in range(width)]
    means = [sum(group) / len(group) for group in groups]
    low, high = min(means), max(means)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (mean - low) / (high - low)) if high > low else 0] for mean in means)
