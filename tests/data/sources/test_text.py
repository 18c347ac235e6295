"""Text corpora: where long texts are cut, and that nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.sources.text import TextCorpus
from mmframe.data.text_pieces import pieces
from mmframe.errors import BadRecord, UserError
from tests.data.sources.builders import write_jsonl


def opened(texts: Any, **more: Any) -> TextCorpus:
    source = TextCorpus(str(texts), **more)
    source.open()
    return source


def texts(source: TextCorpus) -> list[str | None]:
    return [source.record(number).text for number in range(len(source))]


TEXT = "\ufeffeins\nzwei größer\n\n\n  drei 第三段\r\n \r\nvier fünf sechs"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["eins\nzwei größer", "  drei 第三段", "vier fünf sechs"]),
        ({"split": "file"}, ["eins\nzwei größer\n\n\n  drei 第三段\r\n \r\nvier fünf sechs"]),
        ({"split": "file", "max_chars": 32}, ["eins\nzwei größer\n\n\n  drei 第三段", "vier fünf sechs"]),
        ({"max_chars": 12}, ["eins", "zwei größer", "  drei 第三段", "vier fünf ", "sechs"]),
        ({"max_chars": 5}, ["eins", "zwei ", "größe", "r", "  ", "drei ", "第三段", "vier ", "fünf ", "sechs"]),
    ],
)
def test_where_a_text_is_cut(tmp_path: Path, options: Any, expected: list[str]) -> None:
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8", newline="")
    source = opened(tmp_path / "a.txt", **options)
    assert texts(source) == expected
    assert source.record(0).key == f"{tmp_path.name}/a:1" and source.record(0).images == ()


LINES = st.lists(st.text(alphabet="ab ü日\n\r", max_size=30), max_size=12).map("\n".join)


@given(text=LINES, most=st.integers(1, 40), join=st.booleans())
@settings(deadline=None, max_examples=200)
def test_nothing_is_lost_and_nothing_is_too_long(text: str, most: int, join: bool) -> None:
    data = text.encode()
    lines = (
        [line.decode() for line in data.splitlines(keepends=True)] if "\r" not in text else data.decode().split("\n")
    )
    lines = [line + "\n" for line in lines] if "\r" in text else lines
    data = "".join(lines).encode()
    spans = list(pieces(lines, most, join))
    found = [data[span.start_byte : span.end_byte].decode() for span in spans]
    assert found == ["".join(lines)[span.start : span.end] for span in spans]
    assert all(0 < len(piece) <= most for piece in found)
    assert "".join("".join(found).split()) == "".join("".join(lines).split())
    assert spans == sorted(spans)


def test_jsonl_texts_are_cut_between_paragraphs(tmp_path: Path) -> None:
    file = write_jsonl(
        tmp_path / "a.jsonl",
        [
            {"body": "größer 1\n\nzwei\n\n" + "x" * 25},
            "no json",
            {"body": ""},
            {"other": "x"},
            "",
            {"body": "kurz"},
        ],
    )
    source = opened(file, max_chars=20, key="body")
    found = []
    for number in range(len(source)):
        try:
            found.append(source.record(number).text)
        except BadRecord as error:
            found.append(error.reason)
    assert found == ["größer 1\n\nzwei", "x" * 20, "x" * 5, "not JSON", "no text", "no text", "kurz"]


def test_folders_urls_and_several_kinds(tmp_path: Path) -> None:
    import fsspec

    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.txt").write_text("eins\n\nzwei")
    write_jsonl(tmp_path / "set/b.jsonl", [{"text": "drei"}])
    assert texts(opened(tmp_path / "set")) == ["eins", "zwei", "drei"]
    for name in ("a.txt", "b.jsonl"):
        fsspec.filesystem("memory").pipe(f"/texts/{name}", (tmp_path / "set" / name).read_bytes())
    assert texts(opened("memory://texts/*")) == ["eins", "zwei", "drei"]


def test_another_limit_is_another_index(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("aaa bbb")
    assert texts(opened(tmp_path / "a.txt")) == ["aaa bbb"]
    assert texts(opened(tmp_path / "a.txt", max_chars=4)) == ["aaa ", "bbb"]
    assert texts(opened(tmp_path / "a.txt")) == ["aaa bbb"]


def test_mistakes_are_told(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("größer\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8 at byte 2; convert it with: iconv"):
        opened(file)
    file.write_text("\n \n")
    with pytest.raises(UserError, match="holds no records"):
        opened(file)
    with pytest.raises(UserError, match="max_chars=0"):
        TextCorpus("a.txt", max_chars=0)
    with pytest.raises(UserError, match="split='line'"):
        TextCorpus("a.txt", split="line")  # type: ignore[arg-type]
