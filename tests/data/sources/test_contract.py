"""What every registered source promises. A new one is tested once it has an entry in BUILDERS."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import pytest

from mmframe import registry
from mmframe.data import index
from mmframe.data.source import Source
from mmframe.errors import UserError
from tests.data.sources.builders import BUILDERS, everything, read_elsewhere

CLASSES = registry.classes("source")
every = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def built(cls: type, folder: Path) -> list[Source]:
    """The source, or those that it stands for, not opened."""
    if cls.__name__ not in BUILDERS:
        pytest.fail(
            f"{cls.__name__} has no test data; add to BUILDERS in tests/data/sources/builders.py: a function that "
            "writes a few records into a folder and returns the source of them"
        )
    source = BUILDERS[cls.__name__](folder)
    assert type(source) is cls
    parts = source.parts()
    return [source] if parts is None else list(parts.values())


def opened(cls: type, folder: Path) -> list[Source]:
    sources = built(cls, folder)
    for source in sources:
        source.open()
    return sources


@every
def test_records_are_there_and_named(cls: type, tmp_path: Path) -> None:
    records = everything(opened(cls, tmp_path / "data"))
    assert len(records) > 2
    assert len({record["key"] for record in records}) == len(records), "keys are unique"
    for record in records:
        said = [record["conversation"], record["questions"] or None, record["caption"], record["text"]]
        assert sum(each is not None for each in said) == 1
        assert (record["text"] is None) == bool(record["images"])


@every
def test_making_one_opens_nothing_and_a_missing_file_is_told_in_one_line(
    cls: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = cls(**cls.toy_args)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"does not exist") as caught:
        source.open()
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@every
def test_opened_again_nothing_is_indexed(cls: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = opened(cls, tmp_path / "data")
    monkeypatch.setattr(index, "_write", lambda *_: pytest.fail("the index was made a second time"))
    again = [type(source)(**source.spec["init_args"]) for source in sources]
    for source in again + sources:
        source.open()
    assert everything(again) == everything(sources)


@every
def test_an_opened_source_is_small(cls: type, tmp_path: Path) -> None:
    for source in opened(cls, tmp_path / "data"):
        everything([source])  # what it keeps for itself stays behind
        assert len(pickle.dumps(source)) < 4096


@every
def test_its_files_do_not_depend_on_where_they_lie(cls: type, tmp_path: Path) -> None:
    here = [list(source.files()) for source in opened(cls, tmp_path / "here")]
    there = [list(source.files()) for source in opened(cls, tmp_path / "there")]
    assert here == there and all(here)
    for name, size in (file for files in here for file in files):
        assert not Path(name).is_absolute() and str(tmp_path) not in name and size > 0


@every
def test_repeat_and_the_like_reach_the_source(cls: type) -> None:
    source = cls(**cls.toy_args, repeat=0.5, max_tiles=3, prompts=["a"], jpeg_noise=True)  # type: ignore[attr-defined]
    assert (source.repeat, source.max_tiles, source.prompts, source.jpeg_noise) == (0.5, 3, ["a"], True)
    assert source.spec["init_args"]["repeat"] == 0.5
    with pytest.raises(UserError, match="repeat=0"):
        cls(**cls.toy_args, repeat=0)  # type: ignore[attr-defined]


def test_records_are_the_same_in_another_process(tmp_path: Path) -> None:
    """One process for all classes: it has to import everything."""
    sources = [opened(cls, tmp_path / cls.__name__) for cls in CLASSES]
    here = [everything(each) for each in sources]
    assert here == [everything(each) for each in sources]
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=read_elsewhere, args=(pickle.dumps(sources), answers))
    process.start()
    there = answers.get()
    process.join()
    for cls, mine, theirs in zip(CLASSES, here, there, strict=True):
        assert mine == theirs, cls.__name__
