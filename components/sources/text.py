"""Text without pictures: .txt files, and JSONL files with a text in each line."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

import numpy as np

from mmframe.data.files import open_stream, short_name
from mmframe.data.index import Built
from mmframe.data.indexed_source import IndexedSource
from mmframe.data.pictures import FilePart
from mmframe.data.records import Record, parse_json
from mmframe.data.text_pieces import Span, pieces
from mmframe.errors import BadRecord, UserError
from mmframe.registry import register

_AT_ONCE = 65536  # rows


@register("source")
class TextCorpus(IndexedSource):
    """Text alone, of which every token is learnt: .txt files in UTF-8, and JSONL files with a text in each line.

    Long texts become several records, cut between paragraphs where that is possible. Where each record begins is found
    once and kept; nothing of the corpus is held in memory.

    Args:
        texts: The files: paths, URLs that fsspec knows, patterns, or a folder; may be compressed (.gz, .bz2, .xz).
        split: What a .txt file holds: a document in each paragraph (up to a blank line), or one in the whole file,
            whose paragraphs stand together in a record as long as they fit.
        max_chars: Most characters of a record. The default fits into 4096 tokens in any language.
        key: Key of the text in a line of JSONL.
    """

    suffixes = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")
    guessed_by = (".txt", ".txt.gz")
    toy_args = {"texts": "corpus.txt"}

    def __init__(
        self,
        texts: str | list[str],
        split: Literal["paragraph", "file"] = "paragraph",
        max_chars: int = 4000,
        key: str = "text",
        **mix: Any,
    ) -> None:
        super().__init__(texts, **mix)
        if max_chars < 1:
            raise UserError(f"TextCorpus: max_chars={max_chars} must be at least 1")
        if split not in ("paragraph", "file"):
            raise UserError(f"TextCorpus: split={split!r} must be paragraph or file")
        self.split, self.max_chars, self.key = split, max_chars, key

    def index_kind(self) -> str:
        return f"texts 1 {self.split} {self.max_chars} {self.key}"

    def index_file(self, file: str) -> Built:
        """For each record "offset" and "size" in the file, bytes; in JSONL those of its line, and its place in the
        line's text: "start" and "end", characters."""
        rows = self._in_jsonl(file) if file.endswith(".jsonl") else self._in_text(file)
        more = True
        while more:
            some = list(islice(rows, _AT_ONCE))
            offset, size, start, end = np.array(some, np.int64).reshape(-1, 4).T
            yield {"offset": offset, "size": size, "start": start.astype(np.uint32), "end": end.astype(np.uint32)}
            more = bool(some)

    def _in_text(self, file: str) -> Iterator[tuple[int, int, int, int]]:
        for span in pieces(_lines(file), self.max_chars, self.split == "file"):
            yield span.start_byte, span.end_byte - span.start_byte, 0, 0

    def _in_jsonl(self, file: str) -> Iterator[tuple[int, int, int, int]]:
        offset = 0
        with open_stream(file) as lines:
            for line in lines:
                try:
                    text = self._text(line, file)
                    spans: Any = pieces(text.splitlines(keepends=True), self.max_chars, join=True)
                except BadRecord:  # it stays a record, and says what is wrong with it when it is read
                    spans = [Span(0, 0, 0, 0)] if line.strip() else []
                for span in spans:
                    yield offset, len(line), span.start, span.end
                offset += len(line)

    def _text(self, line: bytes, where: str) -> str:
        data = parse_json(line, where)
        text = data.get(self.key) if isinstance(data, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise BadRecord("no text", f'data: {where} has no text under the key "{self.key}"')
        return text

    def record(self, index: int) -> Record:
        file, arrays, row = self.rows.find(index)
        part = FilePart(file, int(arrays["offset"][row]), int(arrays["size"][row]), f"record {row + 1}")
        if file.endswith(".jsonl"):
            text = self._text(part.read(), f"{file} record {row + 1}")
            text = text[int(arrays["start"][row]) : int(arrays["end"][row])]
        else:
            text = part.read().decode().removeprefix("\ufeff")
        return Record(f"{short_name(file)}:{row + 1}", (), text=text)


def _lines(file: str) -> Iterator[str]:
    place = 0
    with open_stream(file) as stream:
        for line in stream:
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"data: {file} is not UTF-8 at byte {place + error.start:,}; convert it with: "
                    f"iconv -f ENCODING -t UTF-8"
                ) from error
            place += len(line)
