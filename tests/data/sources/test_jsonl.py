"""JSONL files and JSON lists: offsets, bad rows, other places, and a million rows."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import pickle
import random
import time
from pathlib import Path
from typing import Any

import pytest

from components.sources.jsonl import JsonlRecords
from mmframe.data.json_ranges import record_ranges
from mmframe.data.records import Record
from mmframe.data.source import BadRecord
from mmframe.errors import UserError
from tests.data.sources.builders import chat, chats, colour, write_jsonl


def opened(annotations: Any, **more: Any) -> JsonlRecords:
    source = JsonlRecords(annotations if isinstance(annotations, list) else str(annotations), **more)
    source.open()
    return source


def records(source: JsonlRecords) -> list[Record]:
    return [source.record(number) for number in range(len(source))]


def reasons(source: JsonlRecords) -> list[str]:
    found = []
    for number in range(len(source)):
        try:
            source.record(number)
            found.append("")
        except BadRecord as error:
            assert "\n" not in str(error) and f"record {number + 1}" in str(error)
            again = pickle.loads(pickle.dumps(error))  # out of a loader process
            assert (again.reason, str(again)) == (error.reason, str(error))
            found.append(error.reason)
    return found


def test_a_line_is_a_record_with_its_pictures(tmp_path: Path) -> None:
    source = opened(chats(tmp_path / "set"))
    record = source.record(3)
    assert record.key == "set/train:r3" and colour(record) == 3
    assert record.conversation == tuple(chat(3)["conversations"])
    assert len(source) == 5 and list(source.files()) == [("train.jsonl", (tmp_path / "set/train.jsonl").stat().st_size)]


def test_every_form_of_record(tmp_path: Path) -> None:
    file = write_jsonl(
        tmp_path / "a.jsonl",
        [
            {"conversations": [{"from": "system", "value": "s"}, {"from": "user", "value": "q"},
                               {"from": "assistant", "value": "a"}]},
            {"image": ["a.png", "b.png"], "questions": [["q", "a"], ["p", 1]]},
            {"image": "a.png", "caption": "c", "text": "ignored"},
            {"image": "a.png", "text": "of a picture: a caption"},
            {"text": "t"},
        ],
    )  # fmt: skip
    first, second, third, fourth, fifth = records(opened(file, image_folder=str(tmp_path / "pictures")))
    assert [turn["from"] for turn in first.conversation or ()] == ["system", "human", "gpt"] and not first.images
    assert second.questions == (("q", "a"), ("p", "1"))
    assert second.images == (tmp_path / "pictures/a.png", tmp_path / "pictures/b.png")
    assert (third.caption, third.text) == ("c", None) and (fourth.caption, fourth.text) == (
        "of a picture: a caption",
        None,
    )
    assert fifth.text == "t" and fifth.key == f"{tmp_path.name}/a:5"


def test_bad_rows_say_why_and_the_others_stay(tmp_path: Path) -> None:
    rows: list[tuple[Any, str]] = [
        (chat(0), ""),
        ('{"conversations": [', "not JSON"),
        ("no json", "not JSON"),
        ('{"text": "' + "[" * 3 + '"}', ""),
        ("[" * 100_000, "not JSON"),
        ('{"text": "\\ud83d"}', "not Unicode"),
        ('{"text": "\\ud83d\\ude00"}', ""),
        ("3", "not a record"),
        ({"id": 1}, "not a record"),
        (chat(1, questions=[["q", "a"]]), "not a record"),
        (chat(1, image=3), "not a record"),
        (chat(1, conversations=[{"from": "human"}]), "not a record"),
        (chat(1, conversations=[{"from": "robot", "value": "x"}]), "unknown role"),
        (chat(1, conversations=[]), "no question"),
        (chat(1, conversations=[{"from": "gpt", "value": "x"}]), "no question"),
        ({"questions": []}, "no question"),
        ({"image": "a.png", "caption": "  "}, "no caption"),
        ({"caption": "of nothing"}, "picture missing"),
        ({"text": ""}, "no text"),
        ({"text": ["a"]}, "not a record"),
        (chat(2), ""),
    ]
    file = write_jsonl(tmp_path / "a.jsonl", [row for row, _ in rows])
    assert reasons(opened(file)) == [reason for _, reason in rows]


def test_a_tail_that_was_cut_off_is_a_bad_record(tmp_path: Path) -> None:
    file = chats(tmp_path)
    file.write_bytes(file.read_bytes()[:-9])
    assert reasons(opened(file)) == ["", "", "", "", "not JSON"]
    file.write_bytes(file.read_bytes().splitlines()[0])  # no line break at the end
    assert reasons(opened(file)) == [""]


def test_blank_lines_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    one, two = '{"text": "eins"}', '{"text": "zwei"}'
    file.write_bytes(f"\ufeff\n{one}\r\n\r\n   \n\n{two}\r\n \n".encode())
    assert [record.text for record in records(opened(file))] == ["eins", "zwei"]
    file.write_bytes(f"\ufeff{one}\n".encode())
    assert [record.text for record in records(opened(file))] == ["eins"]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_list_is_read_without_holding_it(
    tmp_path: Path, indent: int | None, ascii_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Non-ASCII text, brackets in strings, and records longer than what is read at a time."""
    from mmframe.data import json_ranges

    monkeypatch.setattr(json_ranges, "blocks", lambda stream, size: iter(lambda: stream.read(64), b""))
    texts = ['日本 ]}\\" ,', "x" * 1000, "größer \u2028 \x85 ÿ", "[{", "😀" * 100]
    rows = [{"text": text, "more": [[n], {"a": None}]} for n, text in enumerate(texts)]
    file = tmp_path / "a.json"
    file.write_text(" \n" + json.dumps(rows, ensure_ascii=ascii_only, indent=indent) + "\n", encoding="utf-8")
    source = opened(file)
    assert [record.text for record in records(source)] == texts
    assert source.record(1).key.endswith("a:2")


def test_a_list_that_is_broken_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    whole = json.dumps([chat(number) for number in range(3)])
    for text, message in [
        (whole[:-1], r"cut off after record 3 \(byte \d+\)"),
        (whole[:-20], r"record 3 \(from byte \d+ on\) is not JSON or is cut off"),
        (whole.replace('"r1"', "r1"), r"record 2 \(from byte \d+ on\) is not JSON"),
        (whole + "[]", "goes on after its list of 3 records"),
        ("[]", "holds no records"),
        ("", "holds no records"),
        ("\n\n", "holds no records"),
    ]:
        file.write_text(text)
        with pytest.raises(UserError, match=message) as caught:
            opened(file)
        assert "\n" not in str(caught.value)


def test_several_files_and_patterns(tmp_path: Path) -> None:
    for number in range(3):
        write_jsonl(tmp_path / f"part-{number}.jsonl", [{"text": f"{number}.{n}"} for n in range(number + 1)])
    expected = ["0.0", "1.0", "1.1", "2.0", "2.1", "2.2"]
    for named in (
        str(tmp_path),
        f"{tmp_path}/part-{{0..2}}.jsonl",
        [f"{tmp_path}/part-0.jsonl", f"{tmp_path}/*-[12]*"],
    ):
        source = opened(named)
        assert [record.text for record in records(source)] == expected
    assert source.record(4).key == f"{tmp_path.name}/part-2:2"


def test_a_compressed_file_is_unpacked_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = chats(tmp_path)
    with gzip.open(tmp_path / "packed.jsonl.gz", "wb") as file:
        file.write(plain.read_bytes())
    for _ in range(2):
        source = opened(tmp_path / "packed.jsonl.gz", image_folder=str(tmp_path))
        assert [colour(record) for record in records(source)] == [0, 1, 2, 3, 4]
    assert capsys.readouterr().out.count("unpacking packed.jsonl.gz") == 1
    assert source.record(0).key == f"{tmp_path.name}/packed:r0"
    with pytest.raises(UserError, match="say where they lie: image_folder"):
        opened(tmp_path / "packed.jsonl.gz").record(0)
    (tmp_path / "cut.jsonl.gz").write_bytes((tmp_path / "packed.jsonl.gz").read_bytes()[:-10])
    with pytest.raises(UserError, match=r"cut\.jsonl\.gz is damaged or cut off"):
        opened(tmp_path / "cut.jsonl.gz")


def test_pictures_lie_beside_their_file_also_where_that_is_in_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the demo data does; a file that was unpacked into the cache has none beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MMFRAME_DEMO_DATA", raising=False)
    folder = tmp_path / "cache" / "mmframe" / "demo" / "colours"
    folder.mkdir(parents=True)
    name = chats(folder).name
    assert [colour(record) for record in records(opened(f"demo:colours/{name}"))] == [0, 1, 2, 3, 4]


def test_annotations_far_away(tmp_path: Path) -> None:
    import fsspec

    local = chats(tmp_path)
    for name, data in (("a.jsonl", local.read_bytes()), ("a.json", json.dumps([chat(n) for n in range(5)]).encode())):
        fsspec.filesystem("memory").pipe(f"/far/{name}", data)
        source = opened(f"memory://far/{name}", image_folder=str(tmp_path))
        assert [colour(record) for record in records(source)] == [0, 1, 2, 3, 4]
        assert records(source)[1].key == "far/a:r1" and list(source.files()) == [(name, len(data))]
    with pytest.raises(UserError, match="image_folder"):
        opened("memory://far/a.jsonl").record(0)
    with pytest.raises(UserError, match="is a URL"):
        JsonlRecords("a.jsonl", image_folder="s3://pictures")


def test_a_file_that_shrinks_while_it_is_used_is_no_bad_record(tmp_path: Path) -> None:
    file = chats(tmp_path)
    source = opened(file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="it was cut off or has changed since it was indexed") as caught:
        source.record(4)
    assert not isinstance(caught.value, BadRecord)


def test_offsets_are_those_of_the_file(tmp_path: Path) -> None:
    """Whatever the lines are, and wherever the blocks end that they are read in."""
    drawn = random.Random(0)
    lines = ["x" * drawn.choice([0, 1, 5, 40, 300]) + "ü" * drawn.randrange(3) for _ in range(400)]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    from mmframe.data import json_ranges

    found = []
    blocks = json_ranges.blocks
    for block in (7, 64, 1 << 22):
        json_ranges.blocks = lambda stream, size, block=block: blocks(stream, size, block)
        try:
            pieces = list(record_ranges(str(file)))
        finally:
            json_ranges.blocks = blocks
        data = file.read_bytes()
        places = [
            (o, s) for piece in pieces for o, s in zip(piece["offset"].tolist(), piece["size"].tolist(), strict=True)
        ]
        found.append([data[offset : offset + size].decode().strip() for offset, size in places])
    assert found == [[line for line in lines if line]] * 3


# ---- a million rows


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _read_some(source: JsonlRecords, answers: Any) -> None:
    before = _resident()
    started = time.perf_counter()
    source.open()
    drawn = random.Random(0)
    for _ in range(20_000):
        assert source.record(drawn.randrange(1_000_000)).conversation
    answers.put((_resident() - before, time.perf_counter() - started))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of a process from /proc")
def test_a_million_rows_open_in_a_second_and_need_little_memory(tmp_path: Path) -> None:
    line = json.dumps(chat(0)).encode() + b"\n"
    last = json.dumps(chat(999_999)).encode() + b"\n"
    with (tmp_path / "million.jsonl").open("wb") as file:
        for _ in range(999):
            file.write(line * 1000)
        file.write(line * 999 + last)
    started = time.perf_counter()
    opened(tmp_path / "million.jsonl")
    indexing = time.perf_counter() - started
    started = time.perf_counter()
    source = opened(tmp_path / "million.jsonl")
    opening = time.perf_counter() - started
    assert len(source) == 1_000_000 and source.record(999_999).key.endswith(":r999999")
    assert opening < 1
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=_read_some, args=(source, answers))
    process.start()
    grown, reading = answers.get()
    process.join()
    print(f"indexed {indexing:.2f} s, opened {opening:.4f} s, +{grown / 1e6:.1f} MB, 20k rows {reading:.2f} s")
    assert grown < 50e6
