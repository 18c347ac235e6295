"""A line of progress: rewritten on a terminal, a line now and then in a log file. And how its numbers are written."""

from __future__ import annotations

import shutil
import sys
import time
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
