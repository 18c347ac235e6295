"""Names of files in recipes: patterns, folders, URLs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmframe.data.files import expand, locate, short_name, stamp
from mmframe.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("00.tar", "01.tar", "02.tar", "x.txt", "in/a.tar"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path / "d")
    return tmp_path / "d"


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("00.tar", ["00.tar"]),
        ("{00..02}.tar", ["00.tar", "01.tar", "02.tar"]),
        ("0{0,2}.tar", ["00.tar", "02.tar"]),
        ("{0..0}{1..2}.tar", ["01.tar", "02.tar"]),
        ("*.tar", ["00.tar", "01.tar", "02.tar"]),
        ("**/*.tar", ["00.tar", "01.tar", "02.tar", "in/a.tar"]),
        ("0[12].tar", ["01.tar", "02.tar"]),
        (["01.tar", "in/*"], ["01.tar", "in/a.tar"]),
        (".", ["00.tar", "01.tar", "02.tar", "in/a.tar"]),
        ("$HERE/00.tar", ["00.tar"]),
        ("file://{here}/00.tar", ["00.tar"]),
    ],
)
def test_names_stand_for_files(
    folder: Path, named: str | list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERE", str(folder))
    named = named.replace("{here}", str(folder)) if isinstance(named, str) else named
    assert expand(named, (".tar",)) == [str(folder / name) for name in expected]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("03.tar", r"03\.tar does not exist$"),
        ("{00..09}.tar", r"03\.tar does not exist \(7 of the 10 files of \{00\.\.09\}\.tar are missing\)$"),
        ("*.jsonl", r"no file matches \*\.jsonl$"),
        ("{5..3}.tar", "stands for no file: 5 is above 3"),
        ("in", r"no file in .*in ends in \.json$"),
        ("demo:nothing.jsonl", "run: python -m mmframe.data.demo$"),
        ([], "no file is named"),
        ("nosuch://x/y.tar", "Protocol not known|cannot read nosuch://x/y.tar"),
        ("memory://nothing/here.tar", "does not exist"),
    ],
)
def test_what_is_not_there_is_told(folder: Path, named: str | list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        [stamp(file) for file in expand(named, (".json",))]
    assert "\n" not in str(caught.value)


def test_urls_are_left_to_fsspec() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("b.tar", "a.tar"):
        memory.pipe(f"/urls/{name}", b"12345")
    assert expand("memory://urls/*.tar") == ["memory:///urls/a.tar", "memory:///urls/b.tar"]
    assert expand("memory://urls/{a,b}.tar") == ["memory://urls/a.tar", "memory://urls/b.tar"]
    before = stamp("memory://urls/a.tar")
    memory.pipe("/urls/a.tar", b"54321")
    assert before.size == 5 and stamp("memory://urls/a.tar") != before
    assert locate("s3://bucket/a?b") == "s3://bucket/a?b" and short_name("s3://bucket/part/0.jsonl") == "part/0"
