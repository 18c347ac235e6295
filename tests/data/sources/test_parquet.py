"""Parquet files: the layouts of Hugging Face, row groups, and what a user can get wrong."""

from __future__ import annotations

import builtins
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest

from components.sources import parquet
from components.sources.parquet import ParquetImages
from mmframe.data.records import Record
from mmframe.errors import BadRecord, UserError
from tests.data.sources.builders import chat, colour, picture, plain, write_parquet


def opened(shards: Any, **more: Any) -> ParquetImages:
    source = ParquetImages(str(shards), **more)
    source.open()
    return source


def records(source: ParquetImages) -> list[Record]:
    return [source.record(number) for number in range(len(source))]


def embedded(number: int) -> dict[str, Any]:
    return {"bytes": picture(number), "path": f"{number}.png"}


def test_a_row_is_a_record(tmp_path: Path) -> None:
    columns = {"image": [embedded(n) for n in range(8)], "caption": [f"größer {n}" for n in range(8)], "other": [1] * 8}
    source = opened(write_parquet(tmp_path / "set/train.parquet", columns))
    found = records(source)
    assert [(record.caption, colour(record)) for record in found] == [(f"größer {n}", n) for n in range(8)]
    assert found[5].key == "set/train:6" and str(found[5].images[0]).endswith("train.parquet row 6 picture 1")
    assert [name for name, _ in source.files()] == ["train.parquet"]


@pytest.mark.parametrize(
    ("columns", "options", "said", "colours"),
    [
        ({"image": [picture(1)], "text": ["c"]}, {}, ("caption", "c"), [1]),
        ({"images": [[embedded(1), embedded(2)]], "caption": ["c"]}, {}, ("caption", "c"), [1, 2]),
        ({"jpg": [picture(1)], "title": ["c"]}, {"image": "jpg", "text": "title"}, ("caption", "c"), [1]),
        ({"image": [embedded(1)], "conversations": [chat(3)["conversations"]], "text": ["not this"]}, {},
         ("conversation", tuple(chat(3)["conversations"])), [1]),
        ({"image": [embedded(1)], "conversations": [[{"role": "user", "content": "q"},
                                                     {"role": "assistant", "content": "a"}]]}, {},
         ("conversation", ({"from": "human", "value": "q"}, {"from": "gpt", "value": "a"})), [1]),
        ({"images": [[embedded(1), embedded(2)]], "texts": [[{"user": "q", "assistant": "a", "source": "s"}]]}, {},
         ("conversation", ({"from": "human", "value": "<image>\n<image>\nq"}, {"from": "gpt", "value": "a"})), [1, 2]),
        ({"image": [embedded(1)], "questions": [[["q", "a"]]]}, {}, ("questions", (("q", "a"),)), [1]),
        ({"text": ["no picture"]}, {}, ("text", "no picture"), []),
    ],
)  # fmt: skip
def test_layouts(tmp_path: Path, columns: Any, options: Any, said: tuple[str, Any], colours: list[int]) -> None:
    (record,) = records(opened(write_parquet(tmp_path / "a.parquet", columns), **options))
    assert getattr(record, said[0]) == said[1]
    assert [colour(record, place) for place in range(len(record.images))] == colours


def test_rows_are_found_over_files_and_groups_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file, (first, count) in enumerate([(0, 7), (7, 0), (7, 5)]):
        columns = {
            "image": [embedded(n) for n in range(first, first + count)],
            "text": [f"{n}" for n in range(first, first + count)],
        }
        write_parquet(
            tmp_path / f"{file}.parquet", columns if count else {"image": [embedded(0)][:0], "text": [""][:0]}
        )
    source = opened(tmp_path)
    order = [11, 0, 6, 3, 7, 2, 11, 5]
    assert [(source.record(n).caption, colour(source.record(n))) for n in order] == [(str(n), n) for n in order]


def test_row_groups_are_kept_up_to_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_parquet(tmp_path / "a.parquet", {"image": [embedded(n) for n in range(9)], "text": ["c"] * 9})
    reads: list[int] = []
    import pyarrow.parquet

    read = pyarrow.parquet.ParquetFile.read_row_group
    monkeypatch.setattr(
        pyarrow.parquet.ParquetFile, "read_row_group", lambda self, n, **more: reads.append(n) or read(self, n, **more)
    )
    large, small = opened(file), opened(file, cache_mb=0)
    for source in (large, small):
        for row in (0, 1, 2, 8, 7, 0):
            source.record(row)
    assert reads == [0, 2] + [0, 2, 0]
    assert len(pickle.dumps(large)) < 4096


def _read(source: ParquetImages, answers: Any) -> None:
    answers.put([colour(record) for record in records(source)])


def test_a_forked_process_reads_for_itself(tmp_path: Path) -> None:
    for number in range(20):  # more files than stay open
        write_parquet(tmp_path / f"{number:02}.parquet", {"image": [embedded(number)], "text": ["c"]})
    source = opened(tmp_path, cache_mb=0)
    assert [colour(record) for record in records(source)] == list(range(20))
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    processes = [fork.Process(target=_read, args=(source, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [answers.get() for _ in processes] == [list(range(20))] * 2
    for process in processes:
        process.join()


def test_bad_rows_say_why(tmp_path: Path) -> None:
    columns = {
        "image": [embedded(1), None, {"bytes": None, "path": None}, {"bytes": None, "path": "beside.png"}, embedded(1)],
        "caption": [None, "c", "c", "of a file beside it", " "],
    }
    (tmp_path / "beside.png").write_bytes(picture(9))
    source = opened(write_parquet(tmp_path / "a.parquet", columns))
    reasons = []
    for row in range(5):
        try:
            assert plain(source.record(row))["images"] == [(str(tmp_path / "beside.png"), picture(9))]
            reasons.append("")
        except BadRecord as error:
            assert f"row {row + 1}" in str(error)
            reasons.append(error.reason)
    assert reasons == ["not a record", "picture missing", "picture missing", "", "no caption"]


def test_a_url(tmp_path: Path) -> None:
    import fsspec

    local = write_parquet(tmp_path / "a.parquet", {"image": [embedded(n) for n in range(5)], "text": ["c"] * 5})
    fsspec.filesystem("memory").pipe("/parquet/a.parquet", local.read_bytes())
    assert [colour(record) for record in records(opened("memory://parquet/*.parquet"))] == [0, 1, 2, 3, 4]


def test_mistakes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_parquet(tmp_path / "a.parquet", {"image": [embedded(1)], "label": [3]})
    for options, message in [
        ({}, r"a\.parquet has no text column; its columns are image, label; set `text`"),
        ({"text": "lable"}, "there is no column 'lable'; did you mean 'label'"),
        ({"image": "img", "text": "label"}, "there is no column 'img'; .*allowed: image, label"),
    ]:
        with pytest.raises(UserError, match=message):
            opened(file, **options)
    data = file.read_bytes()
    for broken in (b"", b"x" * 100, data[:-20], data[:50]):
        (tmp_path / "b.parquet").write_bytes(broken)
        with pytest.raises(UserError, match=r"b\.parquet is no Parquet file, or is damaged or cut off") as caught:
            opened(tmp_path / "b.parquet")
        assert "\n" not in str(caught.value)


def test_large_row_groups_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_LARGE_GROUP", 10)
    opened(write_parquet(tmp_path / "a.parquet", {"image": [embedded(1)], "text": ["c"]}))
    assert "written anew with row_group_size=100 it is read faster" in capsys.readouterr().out


def test_without_pyarrow_the_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_parquet(tmp_path / "a.parquet", {"image": [embedded(1)], "text": ["c"]})
    real = builtins.__import__

    def hidden(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", hidden)
    with pytest.raises(UserError, match="ParquetImages needs pyarrow; run: pip install pyarrow"):
        opened(file)
