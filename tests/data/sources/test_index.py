"""The index cache: made once, by one process, and whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmframe.data.index import Arrays, Index, cached_index
from mmframe.data.indexed_files import IndexedFiles
from mmframe.errors import UserError

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def data(tmp_path: Path) -> str:
    file = tmp_path / "data.bin"
    file.write_bytes(b"data")
    return str(file)


class Builder:
    """Counts its calls in a file, over processes."""

    def __init__(self, log: Path, pieces: int = 3, die: bool = False) -> None:
        self.log, self.pieces, self.die = log, pieces, die
        log.touch()

    def __call__(self) -> Iterator[Arrays]:
        with self.log.open("a") as log:
            log.write("x")
        for piece in range(self.pieces):
            time.sleep(0.05)
            yield {"a": np.arange(4, dtype=np.int64) + 4 * piece, "b": np.full(piece, 7, np.uint8)}
        if self.die:
            os._exit(9)

    @property
    def calls(self) -> int:
        return len(self.log.read_text())


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path / "log")


def is_right(index: Index) -> bool:
    return index["a"].tolist() == list(range(12)) and index["b"].tolist() == [7, 7, 7]


def test_pieces_become_arrays_that_are_mapped_and_kept(data: str, builder: Builder) -> None:
    first, second = cached_index(data, "k", builder), cached_index(data, "k", builder)
    assert is_right(first) and is_right(second) and builder.calls == 1
    assert not first["a"].flags.writeable and isinstance(first["a"].base, np.memmap)
    assert cached_index(data, "other", lambda: {"c": np.zeros(0, np.int8)})["c"].tolist() == []


def test_it_is_pickled_as_a_path(data: str, tmp_path: Path) -> None:
    index = cached_index(data, "k", lambda: {"a": np.arange(1_000_000)})
    pickled = pickle.dumps(index)
    again = pickle.loads(pickled)
    assert len(pickled) < 1000 and again["a"][999_999] == 999_999 and isinstance(again["a"].base, np.memmap)


def test_a_file_that_has_changed_is_another(data: str, builder: Builder) -> None:
    cached_index(data, "k", builder)
    Path(data).write_bytes(b"atad")
    os.utime(data, ns=(1, 1))  # the same size, another time
    cached_index(data, "k", builder)
    Path(data).write_bytes(b"longer")
    cached_index(data, "k", builder)
    assert builder.calls == 3


@pytest.mark.parametrize("damage", ["shorter", "gone", "no contents", "no json", "all gone"])
def test_a_damaged_entry_is_made_anew(data: str, builder: Builder, cache: Path, damage: str) -> None:
    array = cached_index(data, "k", builder).folder / "a.npy"
    contents = array.with_name("contents.json")
    match damage:
        case "shorter":
            os.truncate(array, 100)
        case "gone":
            array.unlink()
        case "no contents":
            contents.unlink()
        case "no json":
            contents.write_text("{")
        case "all gone":
            [file.unlink() for file in array.parent.iterdir()]
    assert is_right(cached_index(data, "k", builder)) and builder.calls == 2
    assert sorted(file.name for entry in cache.iterdir() for file in entry.iterdir()) == ["arrays", "lock"]


def _index(data: str, builder: Builder, barrier: Any, answers: Any) -> None:
    barrier.wait()
    answers.put(is_right(cached_index(data, "k", builder)))


def test_of_several_processes_one_makes_it(data: str, builder: Builder) -> None:
    barrier, answers = FORK.Barrier(4), FORK.SimpleQueue()
    processes = [FORK.Process(target=_index, args=(data, builder, barrier, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [answers.get() for _ in processes] == [True] * 4
    for process in processes:
        process.join()
    assert builder.calls == 1


def test_without_locks_all_make_it_and_one_stays(
    data: str, builder: Builder, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    import fcntl

    def no_locks(*_: Any) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    barrier, answers = FORK.Barrier(3), FORK.SimpleQueue()
    processes = [FORK.Process(target=_index, args=(data, builder, barrier, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [answers.get() for _ in processes] == [True] * 3
    for process in processes:
        process.join()
    assert sorted(file.name for entry in cache.iterdir() for file in entry.iterdir()) == ["arrays", "lock"]


def test_a_kill_leaves_nothing_that_counts(data: str, builder: Builder, cache: Path) -> None:
    killed = FORK.Process(target=cached_index, args=(data, "k", Builder(builder.log, pieces=1, die=True)))
    killed.start()
    killed.join()
    (entry,) = cache.iterdir()
    assert killed.exitcode == 9 and [file.name for file in entry.glob("making-*")]
    assert is_right(cached_index(data, "k", builder))
    assert sorted(file.name for file in entry.iterdir()) == ["arrays", "lock"]


def test_an_error_while_building_leaves_nothing(data: str, builder: Builder, cache: Path) -> None:
    def broken() -> Iterator[Arrays]:
        yield {"a": np.zeros(3)}
        raise UserError("no such format")

    with pytest.raises(UserError, match="no such format"):
        cached_index(data, "k", broken)
    assert [file.name for entry in cache.iterdir() for file in entry.iterdir()] == ["lock"]
    assert is_right(cached_index(data, "k", builder))


def test_a_cache_that_cannot_be_written_is_told(
    data: str, builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write into .*export XDG_CACHE_HOME=FOLDER"):
        cached_index(data, "k", builder)


def test_rows_of_several_files_are_found(tmp_path: Path) -> None:
    sizes = {"a": 3, "b": 0, "c": 2, "d": 0}
    files = []
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"x" * (size + 1))
        files.append(str(tmp_path / name))
    built: list[str] = []

    def build(file: str) -> Arrays:
        built.append(file)
        size = sizes[Path(file).name]
        return {"row": np.arange(size, dtype=np.int32) + 10 * size, "blob": np.frombuffer(b"ab" * size, np.uint8)}

    rows = IndexedFiles(files, "k", build, "row")
    found = [rows.find(row) for row in range(len(rows))]
    assert [(Path(file).name, int(arrays["row"][row])) for file, arrays, row in found] == [
        ("a", 30), ("a", 31), ("a", 32), ("c", 20), ("c", 21),
    ]  # fmt: skip
    assert [arrays["blob"].tobytes() for _, arrays, _ in found] == [b"ababab"] * 3 + [b"abab"] * 2
    assert list(rows.files()) == [("a", 4), ("b", 1), ("c", 3), ("d", 1)]
    assert len(pickle.dumps(rows)) < 1000
    IndexedFiles(files[:3], "k", build, "row")  # of known files no index is made
    assert sorted(built) == files


def test_one_file_is_stored_once(data: str, cache: Path) -> None:
    IndexedFiles([data], "k", lambda _: {"row": np.arange(3)}, "row")
    assert len(list(cache.iterdir())) == 1
