"""Where the records of a JSONL file or a JSON list begin and end, without keeping any of them in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, islice

import numpy as np

from mmframe.data.files import blocks, open_stream
from mmframe.data.index import Arrays
from mmframe.errors import UserError

_LONGEST = 1 << 28  # bytes; what goes on for longer without an end is no record
_SPACE = " \t\r\n"
_BOM = b"\xef\xbb\xbf"


def record_ranges(file: str, offset: int = 0, size: int | None = None) -> Iterator[Arrays]:
    """The records of a file or of a part of it, in pieces: "offset" (int64) and "size" (uint32), bytes.

    A JSON list holds records, between commas; in all else each line is one, whether it is JSON or not. Blank lines are
    none.

    Args:
        file: path or URL.
        offset, size: of the part, bytes; the offsets of records are those in the file.

    Raises:
        UserError: the file cannot be read; or it is a list that is no JSON or is cut off, with record and byte.
    """
    with open_stream(file) as stream:
        stream.seek(offset)
        content = blocks(stream, size)
        head = next(content, b"")
        is_list = head[:4096].removeprefix(_BOM).lstrip().startswith(b"[")
        yield from (_in_list if is_list else _in_lines)(chain([head], content), file, offset)


def _in_lines(content: Iterator[bytes], name: str, start: int) -> Iterator[Arrays]:
    yield _piece([], [])  # so that a file without records has the arrays too
    rest = b""
    for block in content:
        data = rest + block
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == 10) + 1
        yield _lines(data, ends, start)
        done = int(ends[-1]) if len(ends) else 0
        rest, start = data[done:], start + done
        if len(rest) > _LONGEST:
            raise UserError(f"data: {name} has a line of more than {len(rest):,} bytes; is it JSONL?")
    yield _lines(rest, np.array([len(rest)]), start)


def _lines(data: bytes, ends: np.ndarray, start: int) -> Arrays:
    begins = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    sizes = ends - begins
    kept = sizes > 0
    for number in np.flatnonzero(sizes <= 8):  # few lines are so short, and blank ones are
        kept[number] = bool(data[begins[number] : ends[number]].strip(_BOM + b" \t\r\n"))
    return _piece(start + begins[kept], sizes[kept])


def _in_list(content: Iterator[bytes], name: str, start: int) -> Iterator[Arrays]:
    # latin-1 makes one character of every byte, so places in the text are places in the file; JSON's own characters
    # and what it forbids are the same in both, and the text itself is thrown away
    decode = json.JSONDecoder().raw_decode
    text, place, number, at_end, wanted = "", 0, 0, False, 1
    offsets: list[int] = []
    sizes: list[int] = []

    def more() -> None:
        nonlocal text, place, start, at_end
        data = b"".join(islice(content, wanted))
        text, start, place, at_end = text[place:] + data.decode("latin-1"), start + place, 0, not data

    def skip(characters: str) -> str:
        """The next character that is none of these; "" at the end of the file."""
        nonlocal place
        while True:
            while place < len(text) and text[place] in characters:
                place += 1
            if place < len(text) or at_end:
                return text[place : place + 1]
            more()

    skip(_SPACE + _BOM.decode("latin-1"))
    place += 1  # the bracket
    while (found := skip(_SPACE + ("," if number else ""))) != "]":
        if not found:
            raise UserError(f"data: {name} is cut off after record {number} (byte {start + place:,}); get it again")
        try:
            _, end = decode(text, place)
        except json.JSONDecodeError as error:
            if not at_end and len(text) - place < _LONGEST:  # it may only go on in the next block
                more()
                wanted *= 2  # so that a long record is not begun often
                continue
            raise UserError(
                f"data: {name}: record {number + 1} (from byte {start + place:,} on) is not JSON or is cut off: "
                f"{error.msg} at byte {start + error.pos:,}"
            ) from error
        offsets.append(start + place)
        sizes.append(end - place)
        place, number, wanted = end, number + 1, 1
        if len(offsets) == 65536:
            yield _piece(offsets, sizes)
            offsets, sizes = [], []
    yield _piece(offsets, sizes)
    place += 1
    if skip(_SPACE):
        raise UserError(f"data: {name} goes on after its list of {number} records, at byte {start + place:,}")


def _piece(offsets: list[int] | np.ndarray, sizes: list[int] | np.ndarray) -> Arrays:
    return {"offset": np.asarray(offsets, np.int64), "size": np.asarray(sizes, np.uint32)}
