"""The demo data: split by picture, fetched once, whole or not at all, and clear when a source cannot be reached."""

import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image

from mmframe.data import demo, demo_sources, fetch
from mmframe.data.fetch import Unavailable
from mmframe.errors import UserError

needs_easy_vqa = pytest.mark.skipif(
    importlib.util.find_spec("easy_vqa") is None, reason="pip install --no-deps easy-vqa==1.0"
)


def source(name: str, fail: str = "", calls: list[str] | None = None) -> demo.Source:
    def build(work: Path, out: Path) -> dict[str, int]:
        if calls is not None:
            calls.append(name)
        (out / "half.txt").write_text("x")
        if fail:
            raise Unavailable(fail)
        return {"train.jsonl": 3}

    return demo.Source(name, f"about {name} (a licence)", build)


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without npm, apt and network."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)


def test_nothing_to_be_had_is_one_line_and_exit_2(
    no_tools: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--out", str(tmp_path / "d")]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "none of the picture sources" in said.err
    for name in ("easy_vqa", "emoji", "flags", "text"):
        assert f"{name} NOT available: " in said.out
    assert "npm is not installed" in said.out
    assert not (tmp_path / "d").exists() or not list((tmp_path / "d").iterdir())


def test_a_missing_source_is_named_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "SOURCES", (source("good"), source("bad", fail="npm is not installed")))
    assert demo.main(["--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "good fetched: about good (a licence): train.jsonl 3" in said
    assert "bad NOT available: npm is not installed" in said and "not available: bad" in said
    assert [path.name for path in tmp_path.iterdir()] == ["good"]  # and nothing half done beside it


def test_the_second_run_fetches_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(demo, "SOURCES", (source("good", calls=calls),))
    assert demo.main(["--out", str(tmp_path)]) == demo.main(["--out", str(tmp_path)]) == 0
    assert calls == ["good"]
    assert "good cached: about good (a licence)" in capsys.readouterr().out


def test_a_crash_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def crash(work: Path, out: Path) -> dict[str, int]:
        (out / "half.txt").write_text("x")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "SOURCES", (demo.Source("s", "about", crash),))
    with pytest.raises(KeyboardInterrupt):
        demo.fetch(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--only", "emojis"]) == 2
    assert "did you mean 'emoji'" in capsys.readouterr().err


def test_reading_before_fetching_names_the_command(tmp_path: Path) -> None:
    for read in (lambda: demo.load_questions("easy_vqa", "test", tmp_path), lambda: demo.load_text(tmp_path)):
        with pytest.raises(UserError, match="run: python -m mmframe.data.demo"):
            read()


@needs_easy_vqa
def test_easy_vqa_is_the_official_split_with_held_out_pictures(tmp_path: Path) -> None:
    have, missing = demo.fetch(tmp_path, ["easy_vqa"], say=lambda line: None)
    assert (have, missing) == (["easy_vqa"], [])
    splits = {split: demo.load_questions("easy_vqa", split, tmp_path) for split in ("train", "val", "test")}
    assert len(splits["train"]) + len(splits["val"]) == 38575 and len(splits["test"]) == 9673
    assert sum(question.open for question in splits["test"]) == 2537
    assert len({q.answer for q in splits["train"]}) == 13
    pictures = {split: {q.image for q in questions} for split, questions in splits.items()}
    assert not pictures["train"] & pictures["val"] and len(pictures["train"] | pictures["val"]) == 4000
    assert 350 < len(pictures["val"]) < 450
    assert all(path.is_file() for split in pictures.values() for path in split)
    line = json.loads((tmp_path / "easy_vqa" / "test.jsonl").read_text().splitlines()[0])
    assert set(line) == {"id", "image", "questions"}


def test_pictures_are_split_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    items = []
    for n in range(60):
        path = tmp_path / f"{n}.png"
        Image.new("RGBA", (4, 4), (n // 2, 0, 0, 255)).save(path)  # every picture is there twice
        items.append((f"k{n}", path, [["q", "a"]]))
    counts = demo_sources._write_pictures(tmp_path / "out", items)
    assert sum(counts.values()) == 60
    places: dict[bytes, set[str]] = {}
    for split in ("train", "val", "test"):
        for line in (tmp_path / "out" / f"{split}.jsonl").read_text().splitlines():
            content = (tmp_path / "out" / json.loads(line)["image"]).read_bytes()
            places.setdefault(content, set()).add(split)
    assert len(places) == 30 and all(len(splits) == 1 for splits in places.values())


def test_transparent_pictures_stand_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    demo_sources._write_pictures(tmp_path / "out", [("k", tmp_path / "a.png", [["q", "a"]])])
    with Image.open(tmp_path / "out" / "images" / "k.png") as image:
        assert image.mode == "RGB" and image.getpixel((1, 1)) == (255, 255, 255)
