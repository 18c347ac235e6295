"""Folders of pictures: texts beside them, tables, order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.sources.folder import ImageFolder
from mmframe.errors import BadRecord, UserError
from tests.data.sources.builders import chat, colour, picture, write_jsonl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """b.png, a.JPG, in/c.png and what is no picture."""
    (tmp_path / "set/in").mkdir(parents=True)
    for number, name in enumerate(["b.png", "a.JPG", "in/c.png", ".hidden.png", "notes.md"]):
        (tmp_path / "set" / name).write_bytes(picture(number))
    return tmp_path / "set"


def opened(folder: Path, **more: Any) -> ImageFolder:
    source = ImageFolder(str(folder), **more)
    source.open()
    return source


def found(source: ImageFolder) -> list[tuple[str, str | None, int]]:
    records = [source.record(number) for number in range(len(source))]
    return [(record.key, record.caption, colour(record)) for record in records]


def test_texts_beside_pictures(folder: Path) -> None:
    for name in ("b", "a", "in/c"):
        (folder / f"{name}.txt").write_text(f"\ufeffgrößer {name}\n", encoding="utf-8")
    source = opened(folder)
    assert found(source) == [
        ("set:a.JPG", "größer a", 1), ("set:b.png", "größer b", 0), ("set:in/c.png", "größer in/c", 2),
    ]  # fmt: skip
    assert [name for name, _ in source.files()] == ["a.JPG", "a.txt", "b.png", "b.txt", "in/c.png", "in/c.txt"]
    (folder / "0.png").write_bytes(picture(7))
    (folder / "0.txt").write_text("new")
    assert len(source) == 3 and found(opened(folder))[0] == ("set:0.png", "new", 7)


def test_a_picture_without_a_caption_is_a_bad_record(folder: Path) -> None:
    (folder / "a.txt").write_text("c")
    (folder / "b.txt").write_bytes(b"\xff")
    source = opened(folder)
    assert source.record(0).caption == "c"
    for number in (1, 2):
        with pytest.raises(BadRecord, match=r"b\.txt|c\.txt") as caught:
            source.record(number)
        assert caught.value.reason == "no caption"


@pytest.mark.parametrize("name", ["metadata.jsonl", "captions.jsonl", "metadata.csv", "captions.csv", "captions.tsv"])
def test_one_table_for_all(folder: Path, name: str) -> None:
    rows = [("in/c.png", 'größer, 5" breit'), ("a.JPG", "two\nlines" if "csv" in name else "one line")]
    if name.endswith(".jsonl"):
        write_jsonl(folder / name, [{"file_name": file, "text": text} for file, text in rows])
    elif name.endswith(".csv"):
        quoted = "".join(f'{file},"{text.replace(chr(34), chr(34) * 2)}",7\r\n' for file, text in rows)
        (folder / name).write_text("\ufefffile_name,text,score\r\n" + quoted, encoding="utf-8", newline="")
    else:
        lines = "".join(f"{file}\t{text}\n" for file, text in rows)
        (folder / name).write_text("file_name\tcaption\n" + lines, encoding="utf-8")
    (folder / "b.txt").write_text("not this")
    source = opened(folder)
    assert [(caption, number) for _, caption, number in found(source)] == [(rows[0][1], 2), (rows[1][1], 1)]
    assert [file for file, _ in source.files()] == [name]
    assert source.record(0).key.endswith(":in/c.png")


def test_a_table_can_hold_any_record_and_be_named(folder: Path) -> None:
    write_jsonl(folder / "mine.jsonl", [chat(3, image=None, file_name="b.png", id="x")])
    record = opened(folder, captions="mine.jsonl").record(0)
    assert record.conversation == tuple(chat(3)["conversations"]) and colour(record) == 0
    assert record.key == "set/mine:x"


def test_bad_rows_of_a_table_say_why(folder: Path) -> None:
    (folder / "captions.csv").write_bytes(b"file_name,text\na.JPG\na.JPG,\xff\na.JPG,\n")
    source = opened(folder)
    for number, reason in enumerate(["not CSV", "not CSV", "no caption"]):
        with pytest.raises(BadRecord, match=f"record {number + 1}") as caught:
            source.record(number)
        assert caught.value.reason == reason


def test_mistakes_are_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        ({"folder": str(tmp_path / "nothing")}, "the folder .*nothing does not exist"),
        ({"folder": str(tmp_path / "empty")}, r"empty holds no pictures \(\.jpg, "),
        ({"folder": str(folder), "captions": "x.jsonl"}, r"x\.jsonl does not exist"),
    ]:
        with pytest.raises(UserError, match=message):
            ImageFolder(**arguments).open()
    for text, message in [
        ("", "captions.csv holds no records|is empty"),
        ("file_name,text\n", "holds no records"),
        ("name,text\na.JPG,c\n", "needs the columns file_name and text, it has name, text"),
        ("file_name,text\n" + "x" * 200_000 + ",c\n", r"cannot be read as CSV after byte \d+: field larger"),
    ]:
        (folder / "captions.csv").write_text(text)
        with pytest.raises(UserError, match=message) as caught:
            opened(folder)
        assert "\n" not in str(caught.value)
    (folder / "captions.csv").unlink()
    assert json.dumps(opened(folder).spec)
