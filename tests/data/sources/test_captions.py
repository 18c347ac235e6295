"""The archives of captions: files in archives, folders of files, and names of keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.sources.captions import CaptionArchive
from mmframe.errors import BadRecord, UserError
from tests.data.sources.builders import chat, colour, picture, write_jsonl, write_tar


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    (tmp_path / "pictures").mkdir()
    for number in range(12):
        (tmp_path / f"pictures/{number}.png").write_bytes(picture(number))
    return str(tmp_path / "pictures")


def lines(*records: dict[str, Any]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def opened(archives: Any, pictures: str, **more: Any) -> CaptionArchive:
    source = CaptionArchive(str(archives), pictures, **more)
    source.open()
    return source


def captions(source: CaptionArchive) -> list[tuple[str | None, int]]:
    found = [source.record(number) for number in range(len(source))]
    return [(record.caption, colour(record)) for record in found]


def caption(number: int) -> dict[str, Any]:
    return {"id": 0, "image": f"{number}.png", "caption": f"größer {number}"}


EXPECTED = [(f"größer {number}", number) for number in range(12)]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_files_in_archives_and_in_folders_are_the_same(tmp_path: Path, pictures: str, suffix: str) -> None:
    for group in range(3):
        files = {f"group{group}/{n}.jsonl": lines(*(caption(4 * group + 2 * n + k) for k in range(2))) for n in (1, 0)}
        write_tar(tmp_path / f"group{group}.{suffix}", files | {"README.md": b"# captions\n"})
        for name, data in files.items():
            (tmp_path / "unpacked" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "unpacked" / name).write_bytes(data)
    packed = opened(tmp_path / f"group{{0..2}}.{suffix}", pictures)
    assert captions(packed) == captions(opened(tmp_path / "unpacked", pictures)) == EXPECTED
    assert packed.record(5).key == f"{tmp_path.name}/group1:2", "an id is that of its file, and there are many"
    assert len(list(packed.files())) == 3


def test_keys_have_the_names_that_are_given(tmp_path: Path, pictures: str) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"key": n, "short": f"größer {n}", "url": "x"} for n in range(12)])
    assert captions(opened(file, pictures, picture="{key}.png", caption="short")) == EXPECTED
    with pytest.raises(BadRecord, match="has the keys key, short, url, which picture='{image}'") as caught:
        opened(file, pictures).record(0)
    assert caught.value.reason == "not a record"
    with pytest.raises(UserError, match="keys stand in braces"):
        CaptionArchive("a.tar", pictures, picture="{key")


def test_conversations_are_read_as_they_are(tmp_path: Path, pictures: str) -> None:
    record = opened(write_jsonl(tmp_path / "a.jsonl", [chat(7)]), pictures).record(0)
    assert record.conversation == tuple(chat(7)["conversations"]) and colour(record) == 7


def test_an_archive_without_captions_is_told(tmp_path: Path, pictures: str) -> None:
    with pytest.raises(UserError, match=r"a\.tar holds no \.jsonl file"):
        opened(write_tar(tmp_path / "a.tar", {"a.png": picture()}), pictures)
