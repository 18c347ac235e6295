"""Where the rows of a CSV or TSV file begin and end."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator

import numpy as np

from mmframe.data.files import open_stream
from mmframe.data.index import Arrays
from mmframe.errors import UserError


def csv_rows(lines: Iterable[str], file: str) -> Iterator[list[str]]:
    """The rows of some lines: of a .tsv file each line is one and quotes mean nothing; else as the csv module reads."""
    if file.endswith(".tsv"):
        return csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(lines)


def csv_header(file: str) -> list[str]:
    """The names of the columns, from the first row.

    Raises:
        UserError: the file is empty or no CSV file.
    """
    with open_stream(file) as stream:
        header = next(csv_rows((line.decode("utf-8-sig", "replace") for line in stream), file), [])
    if not header:
        raise UserError(f"data: {file} is empty; its first row must name the columns")
    return header


def csv_ranges(file: str) -> Arrays:
    """The rows after the first: "offset" (int64) and "size" (uint32), bytes.

    Raises:
        UserError: it cannot be read as CSV; says at which byte.
    """
    offsets, sizes = [], []
    place = start = 0

    def lines(stream: Iterable[bytes]) -> Iterator[str]:
        nonlocal place
        for line in stream:
            place += len(line)
            yield line.decode("utf-8", "replace")

    with open_stream(file) as stream:
        try:
            for row in csv_rows(lines(stream), file):  # takes as many lines as the row has
                if row and start:
                    offsets.append(start)
                    sizes.append(place - start)
                start = place
        except csv.Error as error:
            raise UserError(f"data: {file} cannot be read as CSV after byte {start:,}: {error}") from error
    return {"offset": np.array(offsets, np.int64), "size": np.array(sizes, np.uint32)}
