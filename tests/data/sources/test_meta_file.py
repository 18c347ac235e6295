"""Meta files as the reference's users have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.sources.meta_file import MetaFile
from mmframe.data.source import Source
from mmframe.errors import UserError
from tests.data.sources.builders import chats, colour


def write_meta(folder: Path, **entries: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").write_text(json.dumps(entries), encoding="utf-8")
    return str(folder / "meta.json")


def opened(path: str, **mix: Any) -> dict[str, Source]:
    source = MetaFile(path, **mix)
    source.open()
    return source.parts()


def entry(folder: Path, **more: Any) -> dict[str, Any]:
    return {"root": str(folder), "annotation": str(folder / "train.jsonl"), "data_augment": False, "repeat_time": 1,
            "length": 5} | more  # fmt: skip


def test_each_entry_is_a_source_with_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chats(tmp_path / "a"), chats(tmp_path / "b", 3)
    path = write_meta(
        tmp_path,
        a=entry(tmp_path / "a", repeat_time=0.5, max_dynamic_patch=12, data_augment=True),
        b=entry(tmp_path / "b", length=3, repeat_time=2),
    )
    parts = opened(path)
    assert list(parts) == ["a", "b"] and [len(part) for part in parts.values()] == [5, 3]
    a, b = parts.values()
    assert (a.repeat, a.max_tiles, a.jpeg_noise, a.prompts) == (0.5, 12, True, None)
    assert (b.repeat, b.max_tiles, b.jpeg_noise) == (2, None, False)
    assert [colour(a.record(number)) for number in range(5)] == [0, 1, 2, 3, 4]
    assert list(MetaFile(path).files()) if False else list(a.files())[0][0] == "train.jsonl"
    assert capsys.readouterr().out == ""


def test_what_the_meta_file_is_given_holds_for_all(tmp_path: Path) -> None:
    chats(tmp_path / "a")
    path = write_meta(tmp_path, a=entry(tmp_path / "a", repeat_time=3), b={"root": "a", "annotation": "a/train.jsonl"})
    a, b = opened(path, repeat=0.5, max_tiles=4, prompts=["what is it?"], jpeg_noise=True).values()
    assert (a.repeat, a.max_tiles, a.prompts, a.jpeg_noise) == (1.5, 4, ["what is it?"], False)
    assert (b.repeat, b.max_tiles, b.prompts, b.jpeg_noise) == (0.5, 4, ["what is it?"], True)


def test_relative_paths_are_those_of_the_working_directory_or_of_the_meta_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats(tmp_path / "here" / "set"), chats(tmp_path / "there" / "set", 2)
    path = write_meta(tmp_path / "there", a=entry(Path("set")))
    monkeypatch.chdir(tmp_path)
    assert len(opened(path)["a"]) == 2
    monkeypatch.chdir(tmp_path / "here")
    assert len(opened(path)["a"]) == 5


def test_a_wrong_length_is_told_once_and_does_not_matter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chats(tmp_path / "a")
    source = MetaFile(write_meta(tmp_path, a=entry(tmp_path / "a", length=665_298)))
    for _ in range(2):
        source.open()
    assert len(source.parts()["a"]) == 5
    out = capsys.readouterr().out
    assert "a/train.jsonl holds 5 records, not 665,298; all of them are used\n" in out and out.count("\n") == 1


def test_no_repeat_leaves_it_out_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chats(tmp_path / "a")
    path = write_meta(tmp_path, a=entry(tmp_path / "a", repeat_time=0), b=entry(tmp_path / "a"))
    assert list(opened(path)) == ["b"]
    assert "'a' has repeat_time 0 and is left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read the meta file"),
        ("[]", "is no meta file"),
        ('{"a": 1}', "is no meta file"),
        ("{}", "lists no data set"),
        ('{"a": {"root": "x"}}', r"'a': 'annotation' must be a path, got None"),
        ('{"a": {"annotation": "x"}}', r"'a': 'root' must be a path, got None"),
        ('{"a": {"root": "", "annotation": "x.jsonl", "repeat_time": "2"}}', "'repeat_time' must be a number"),
        (
            '{"a": {"root": "", "annotation": "x.jsonl", "max_dynamic_patch": "6"}}',
            "'max_dynamic_patch' must be a whole",
        ),
        ('{"a": {"root": "", "annotation": "x.jsonl"}}', r"x\.jsonl does not exist"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        opened(str(tmp_path / "meta.json"))
    assert "\n" not in str(caught.value)
