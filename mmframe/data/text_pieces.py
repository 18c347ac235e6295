"""Long texts in pieces, cut between paragraphs where that is possible. A pure function of the text and the limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from typing import NamedTuple


class Span(NamedTuple):
    """A part of a text: up to `end`, in characters, and up to `end_byte` of it in UTF-8."""

    start: int
    end: int
    start_byte: int
    end_byte: int


def pieces(lines: Iterable[str], most: int, join: bool) -> Iterator[Span]:
    """The pieces of a text, each of at most `most` characters, without the blank lines around them.

    A paragraph (the lines up to a blank one) that is too long is cut at the ends of lines; a line that is too long,
    after the last space that fits, else anywhere.

    Args:
        lines: of the text, with their line breaks.
        most: characters.
        join: put paragraphs together as long as they fit; else each is a piece.
    """
    paragraphs = groupby(_parts(lines, most), key=lambda part: part[0])
    found = chain.from_iterable(_joined((span for _, span in paragraph), most) for _, paragraph in paragraphs)
    return _joined(found, most) if join else found


def _joined(spans: Iterable[Span], most: int) -> Iterator[Span]:
    """Neighbours together as long as they fit."""
    grown: Span | None = None
    for span in spans:
        if grown is not None and span.end - grown.start <= most:
            grown = Span(grown.start, span.end, grown.start_byte, span.end_byte)
        else:
            if grown is not None:
                yield grown
            grown = span
    if grown is not None:
        yield grown


def _parts(lines: Iterable[str], most: int) -> Iterator[tuple[int, Span]]:
    """(number of its paragraph, span) of each line, or of each part of a line that is too long."""
    paragraph = place = byte = 0
    for line in lines:
        text = line.rstrip()
        if not text:
            paragraph += 1
        start, at = 0, byte
        while start < len(text):
            end = _cut(text, start, most)
            size = len(text[start:end].encode())
            yield paragraph, Span(place + start, place + end, at, at + size)
            start, at = end, at + size
        place, byte = place + len(line), byte + len(line.encode())


def _cut(text: str, start: int, most: int) -> int:
    if len(text) - start <= most:
        return len(text)
    space = text.rfind(" ", start, start + most)
    return space + 1 if space > start else start + most
