"""Token ids become text piece by piece: never half a character, never a part of what may become a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from mmframe.processing.tokenizer import Tokenizer

HALF = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers write for the bytes of a character that is not complete."""


class TextStream:
    """The text of a growing list of ids. The pieces that `add` and `end` return, joined, are `text`.

    Only the last few ids are decoded at a time: those since the last piece and, before them, the piece itself, since
    decoders treat the beginning of a text in a special way (they drop a space there).

    Args:
        tokenizer: Decodes.
        stop: The text ends before the first of these, and `stopped` is set.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.text = ""
        self.stopped = False
        self._ids: list[int] = []
        self._first = self._read = 0  # the last piece is made of ids first..read
        self._piece = ""
        self._sent = 0

    def add(self, token: int) -> str:
        """Takes one more id; returns the text that is certain now and was not returned before."""
        self._ids.append(token)
        new = self._new()
        if not new or new.endswith(HALF):
            return ""
        self._first, self._read = self._read, len(self._ids)
        self._piece = self.tokenizer.decode(self._ids[self._first : self._read])
        self._append(new)
        return self._send(len(self.text) - self._possible_stop())

    def end(self) -> str:
        """No more ids come: returns what was held back. Bytes that never became a character are dropped."""
        if not self.stopped:
            self._append(self._new().rstrip(HALF))
            self._first, self._piece = len(self._ids), ""
        return self._send(len(self.text))

    def _new(self) -> str:
        return self.tokenizer.decode(self._ids[self._first :])[len(self._piece) :]

    def _append(self, new: str) -> None:
        longest = max(map(len, self.stop), default=1)
        start = max(0, len(self.text) - longest + 1)  # a stop text may have begun earlier
        self.text += new
        found = [place for stop in self.stop if (place := self.text.find(stop, start)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _possible_stop(self) -> int:
        """Length of the longest end of the text that begins a stop text."""
        if self.stopped:
            return 0
        longest = max(map(len, self.stop), default=1)
        ends = (n for n in range(min(longest - 1, len(self.text)), 0, -1) if self._begins_stop(self.text[-n:]))
        return next(ends, 0)

    def _begins_stop(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self.stop)

    def _send(self, upto: int) -> str:
        piece = self.text[self._sent : upto]
        self._sent = max(self._sent, upto)
        return piece
