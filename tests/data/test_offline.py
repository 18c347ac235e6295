"""`mmframe data offline`: real data out of packages; the same bytes each time, split by picture, whole or not there."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from components.sources.tar_shards import TarShards
from components.sources.text import TextCorpus
from mmframe.cli import offline
from mmframe.cli.main import main
from mmframe.data import packages as packages_file
from mmframe.data.fetch import Unavailable
from mmframe.data.offline import captions, digits, documents, text, vqa, writing
from mmframe.data.offline.build import build
from mmframe.data.offline.shards import ShardWriter
from mmframe.data.offline.source import Item, OfflineSource, slug
from mmframe.data.offline.sources import SOURCES
from mmframe.data.packages import Packages
from mmframe.data.split import SPLITS, split_of
from tests.data import offline_packages as put
from tests.data.offline_packages import Fake, png

needs_easy_vqa = pytest.mark.skipif(
    importlib.util.find_spec("easy_vqa") is None, reason="pip install --no-deps easy-vqa==1.0"
)


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path / "packages")


def samples(folder: Path, split: str) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """(name of the picture, its bytes, the record) of all shards of a split."""
    for shard in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(shard) as tar:
            found = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
        for (name, data), (record_name, record) in zip(found[::2], found[1::2], strict=True):
            assert record_name == name.rpartition(".")[0] + ".json"
            yield name, data, json.loads(record)


def pictures(count: int, colour: Callable[[int], tuple[int, ...]] = lambda n: (n, 0, 0)) -> Iterator[Item]:
    for n in range(count):
        yield Item(f"k{n}", png(colour(n)), {"caption": f"picture {n}"})


# -- what the packages hold ------------------------------------------------------------------------------------------


def test_stamps_have_the_english_line_and_no_mirrored_or_svg_pictures(fake: Fake) -> None:
    put.stamps(fake)
    (stamp,) = captions.stamps(fake)
    assert (stamp.key, stamp.said) == ("animals-sea_horse", {"caption": "A sea horse."})


def test_clipart_has_titles_that_tell_something_and_neither_gpl_nor_flags(fake: Fake) -> None:
    put.drawing(fake, "food/lime", "Lime &amp;  salt")
    put.drawing(fake, "food/beer", "Clipart by A. Author - a_beer")
    put.drawing(fake, "office/switch", "Switch", licence="licenses/GPL/2.0/")
    put.drawing(fake, "office/author", "A. Author")
    put.drawing(fake, "office/number", "R2")
    put.drawing(fake, "signs/flags/there", "There")
    for n in range(4):
        put.drawing(fake, f"set/{n}", "A collection" if n % 2 else "a Collection")
    found = {item.key: item.said["caption"] for item in captions.clipart(fake)}
    assert found == {"food-lime": "Lime & salt", "food-beer": "a beer"}


def test_a_title_may_be_used_three_times(fake: Fake) -> None:
    for n in range(3):
        put.drawing(fake, f"set/{n}", "A collection")
    assert len(list(captions.clipart(fake))) == 3


def test_maps_ask_for_regions_that_can_be_seen(fake: Fake) -> None:
    put.atlas(fake)
    (item,) = vqa.maps(fake)
    assert item.said["questions"] == [
        ["What does this map show?", "Land"],
        ["Which region is coloured rgb(255, 0, 0)?", "North & East"],
        ["What is the capital of the region coloured rgb(255, 0, 0)?", "Reds"],
    ]


def test_gimp_figures_have_their_title_where_they_are_one_picture(fake: Fake) -> None:
    put.gimp(fake)
    (item,) = documents.gimp_figures(fake)
    assert (item.key, item.said) == ("dialogs-menu", {"caption": "The file menu"})


def test_gimp_text_has_paragraphs_and_no_navigation(fake: Fake) -> None:
    put.gimp(fake)
    (read,) = text.gimp_text(fake)  # the other page is too short
    assert read.startswith("The menu\n\nA menu: Words of the manual. Words")
    assert "\n\ntwo\n  lines\n\n" in read and "Next" not in read


def test_a_page_is_asked_for_as_it_is_printed(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    put.manuals(fake)
    monkeypatch.delitem(sys.modules, "pypdfium2", raising=False)
    path = list(sys.path)
    try:
        first, last = documents.manual_pages(fake)  # the second page holds its number alone
    finally:
        sys.modules.pop("pypdfium2", None)
    assert sys.path == path
    assert (first.key, last.key) == ("R-intro-0001", "R-intro-0003")
    assert first.said["questions"][0][1] == "Chapter 1\nA text in which a com-\nputer breaks a word."
    with Image.open(io.BytesIO(first.picture)) as page:
        assert (page.size, page.mode) == ((918, 1188), "L")


def test_without_a_pdf_reader_the_command_is_said(fake: Fake) -> None:
    with pytest.raises(Unavailable, match="pip install pypdfium2"):
        list(documents.manual_pages(fake))


def test_each_digit_stands_in_one_number_and_keeps_its_split(fake: Fake) -> None:
    put.mnist(fake)
    seen: dict[bytes, str] = {}
    for item in digits.numbers(fake):
        number = item.said["questions"][0][1]
        with Image.open(io.BytesIO(item.picture)) as image:
            assert image.size == (28 * len(number), 28) and 1 <= len(number) <= 6
            for place, digit in enumerate(number):
                pixels = image.crop((28 * place, 0, 28 * place + 28, 28)).tobytes()
                assert pixels not in seen and split_of(pixels) == item.split
                assert digit == ("7" if pixels[0] > 255 - 255 * 0.32 else "8")
                seen[pixels] = digit
    assert sorted(seen.values()) == ["7"] * 40 + ["8"] * 40


def test_wordnet_leaves_out_what_the_demo_checks_with(fake: Fake) -> None:
    put.wordnet(fake)
    read = list(text.wordnet(fake))
    assert len(read) == 1301 - 1200 and "run: move fast." in read
    assert all(line.startswith(("sea horse", "run")) for line in read)


def test_gcide_has_entries_without_marks(fake: Fake) -> None:
    put.gcide(fake)
    assert list(text.gcide(fake)) == [
        "Affect, v. t. [L. affectus.] 1. To act upon; to change. See Effect.\n2. To love.",
        "Zoo, n. A garden.",
    ]


# -- how it is written -----------------------------------------------------------------------------------------------


def test_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    source = OfflineSource("s", "about", "a licence", 1, pictures=lambda _: pictures(40, lambda n: (n, 0, 0, 4 * n)))
    for name in ("a", "b"):
        build(source, tmp_path / name, Packages(tmp_path))
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["source.json", "test-00000.tar", "train-00000.tar", "val-00000.tar"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    with tarfile.open(tmp_path / "a" / "train-00000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}


def test_no_picture_is_in_two_splits(tmp_path: Path) -> None:
    """Every picture is there under three names and in two encodings."""

    def items() -> Iterator[Item]:
        yield from pictures(60, lambda n: (n // 2, 0, 0))
        for n in range(30):
            file = io.BytesIO()
            Image.new("RGB", (12, 9), (n, 0, 0)).save(file, "PNG", compress_level=0)
            yield Item(f"again{n}", file.getvalue(), {"caption": "again"})

    counts = writing.write_pictures(tmp_path, items())
    assert counts["pictures"] == 30 and counts["same_picture"] == 60
    where = [(data, split) for split in SPLITS for _, data, _ in samples(tmp_path, split)]
    assert len(where) == len({data for data, _ in where}) == 30
    assert all(split_of(data) == split for data, split in where)


def test_opaque_files_are_kept_and_others_stand_on_white(tmp_path: Path) -> None:
    jpeg, palette = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (9, 9), (5, 90, 5)).save(jpeg, "JPEG")
    indexed = Image.new("P", (9, 9), 1)
    indexed.putpalette([0, 0, 0, 9, 9, 9])
    indexed.save(palette, "PNG", transparency=1)
    opaque = png((8, 8, 8, 255))
    assert writing.stored(opaque)[:2] == (opaque, "png")
    assert writing.stored(jpeg.getvalue())[:2] == (jpeg.getvalue(), "jpg")
    for cut_out in (png((0, 0, 0, 0)), palette.getvalue()):
        with Image.open(io.BytesIO(writing.stored(cut_out)[0])) as image:
            assert image.mode == "RGB" and image.getpixel((1, 1)) == (255, 255, 255)


def test_shards_are_limited_in_samples_and_bytes(tmp_path: Path) -> None:
    for name, limits in (("samples", {"most_samples": 2}), ("bytes", {"most_bytes": 4000})):
        with ShardWriter(tmp_path / name, **limits) as writer:
            for n in range(5):
                writer.add(f"k{n}", bytes(1000), "png", {"id": f"k{n}"})
        sizes = []
        for shard in sorted(tmp_path.glob(f"{name}-*.tar")):
            with tarfile.open(shard) as tar:
                sizes.append(len(tar.getnames()) // 2)
        assert sizes == [2, 2, 1] and writer.samples == 5 and writer.shards == 3


def test_a_picture_with_many_questions_is_several_records_of_one_split(tmp_path: Path) -> None:
    asked = [[f"q{n}", "a"] for n in range(60)]
    counts = writing.write_pictures(tmp_path, [Item("map", png((1, 2, 3)), {"questions": asked})])
    (split,) = (split for split, count in counts["records"].items() if count)
    records = [record for _, _, record in samples(tmp_path, split)]
    assert [len(record["questions"]) for record in records] == [24, 24, 12]
    assert [question for record in records for question in record["questions"]] == asked
    assert counts["pictures"] == 1 and counts["answers"] == 60 and len({record["id"] for record in records}) == 3


def test_pictures_too_large_to_be_read_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    items = [Item(f"k{side}", png((1, 2, 3), (side, side)), {"caption": "c"}) for side in (10, 15, 30)]
    counts = writing.write_pictures(tmp_path, items)
    assert (counts["pictures"], counts["too_large"]) == (1, 2)


@pytest.mark.parametrize("items", [[], [Item("k", b"no picture", {"caption": "c"})]])
def test_a_package_of_another_layout_is_unavailable(tmp_path: Path, items: list[Item]) -> None:
    with pytest.raises(Unavailable, match="layout has changed"):
        writing.write_pictures(tmp_path, items)


def test_slug_is_a_key_of_shards() -> None:
    assert slug("animals/sea horse.2-é") == "animals-sea_horse_2-_"


@needs_easy_vqa
def test_easy_vqa_keeps_its_official_split(tmp_path: Path) -> None:
    source = next(source for source in SOURCES if source.name == "easy_vqa")
    (tmp_path / "packages").mkdir()
    build(source, tmp_path / "easy_vqa", Packages(tmp_path / "packages"))
    facts = json.loads((tmp_path / "easy_vqa" / "source.json").read_text())
    assert facts["records"] == {"train": 3616, "val": 384, "test": 1000}
    assert facts["answers"] == 38575 + 9673 and facts["packages"] == ["pip easy-vqa 1.0"]
    keys, looks = [], set()
    for split in SPLITS:
        for _, data, record in samples(tmp_path / "easy_vqa", split):
            assert record["id"].startswith("test-") == (split == "test")
            keys.append(record["id"])
            looks.add(hashlib.sha256(data).digest())
    assert len(keys) == len(set(keys)) == len(looks) == 5000


# -- the command -----------------------------------------------------------------------------------------------------


def toy(name: str, calls: list[str] | None = None, fail: str = "") -> OfflineSource:
    def items(packages: Packages) -> Iterator[Item]:
        if calls is not None:
            calls.append(name)
        packages.used.append(f"apt {name} 1.0")
        yield from pictures(20)
        if fail:
            raise Unavailable(fail)

    return OfflineSource(name, f"about {name}", f"licence of {name}", 7, pictures=items, prompts="describe")


def toy_text(name: str) -> OfflineSource:
    return OfflineSource(name, "a text", "free", 1, texts=lambda _: iter(["A first text.", "Ein zweiter, größer."]))


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda *sources: monkeypatch.setattr(offline, "SOURCES", sources)


def run(*words: object) -> int:
    return main(["data", "offline", *map(str, words)])


def test_what_was_built_is_named_with_licences_and_read_by_our_sources(
    tmp_path: Path, table: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    table(toy("good"), toy("bad", fail="npm is not installed"), toy_text("words"))
    out = tmp_path / "out"
    assert run(out) == 0
    said = capsys.readouterr().out
    train, val, test = json.loads((out / "good" / "source.json").read_text())["records"].values()
    assert train + val + test == 20 and train > 10
    assert f"[1/3] good built in 0:00: train {train}, val {val}, test {test}; " in said
    assert "licence: licence of good" in said
    assert "[2/3] bad NOT available: npm is not installed" in said
    assert "offline data: 2 of 3 sources, " in said and "not available: bad" in said
    kept = {".gitignore", "LICENCES.md", "good", "mixture.yaml", "words"}
    assert {path.name for path in out.iterdir()} == kept  # and nothing half done
    assert (out / ".gitignore").read_text() == "*\n"
    licences = (out / "LICENCES.md").read_text()
    assert f"| good | about good | apt good 1.0 | licence of good | {train} / {val} / {test} pictures |" in licences
    assert "| words | a text |  | free | 2 texts |" in licences

    data = yaml.safe_load((out / "mixture.yaml").read_text())["data"]
    assert data["class_path"] == "MixtureData" and list(data["init_args"]) == ["sources", "val"]
    sources, validation = data["init_args"]["sources"], data["init_args"]["val"]
    assert (list(sources), list(validation)) == (["good", "words"], ["good"])
    classes = {"TarShards": TarShards, "TextCorpus": TextCorpus}
    opened = {name: classes[entry["class_path"]](**entry["init_args"]) for name, entry in sources.items()}
    for source in opened.values():
        source.open()
    read = [opened["good"].record(n) for n in range(len(opened["good"]))]
    assert len(read) == train and all((record.caption or "").startswith("picture ") for record in read)
    assert [opened["words"].record(n).text for n in range(2)] == ["A first text.", "Ein zweiter, größer."]


def test_the_second_run_builds_nothing(
    tmp_path: Path, table: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    table(toy("a", calls), toy("b", calls))
    assert run(tmp_path, "--only", "a") == run(tmp_path) == 0
    assert calls == ["a", "b"]
    assert "a cached: train " in capsys.readouterr().out
    assert "| a |" in (tmp_path / "LICENCES.md").read_text()


def test_licences_name_what_an_earlier_run_built(tmp_path: Path, table: Callable[..., None]) -> None:
    table(toy("a"), toy("b"))
    assert run(tmp_path, "--only", "b") == run(tmp_path, "--only=a") == 0
    assert "| b |" in (tmp_path / "LICENCES.md").read_text()


def test_a_kill_leaves_nothing_half_done(
    tmp_path: Path, table: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    table(toy("a"), toy("b"))
    assert run(tmp_path, "--only", "a") == 0
    monkeypatch.setattr(ShardWriter, "close", killed)
    assert run(tmp_path) == 130
    assert {path.name for path in tmp_path.iterdir()} == {".gitignore", "LICENCES.md", "a", "mixture.yaml"}
    monkeypatch.undo()
    table(toy("a"), toy("b"))
    assert run(tmp_path) == 0 and (tmp_path / "b" / "source.json").is_file()


def test_sigterm_takes_away_what_is_half_done(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from mmframe.cli import offline
from mmframe.data.offline.source import OfflineSource
def killed(packages):
    os.kill(os.getpid(), signal.SIGTERM)
    yield "text"
offline.SOURCES = (OfflineSource("s", "about", "free", 1, texts=killed),)
sys.exit(offline.main([{str(tmp_path / "out")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 143, done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".gitignore"]


def test_nothing_to_be_had_is_exit_2(
    tmp_path: Path, table: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    table(toy("a", fail="no network"), toy("b", fail="no npm"))
    assert run(tmp_path) == 2
    said = capsys.readouterr()
    assert "none of the sources could be had (a, b)" in said.err and said.err.count("\n") == 1
    assert "a NOT available: no network" in said.out


def test_a_registry_that_does_not_answer_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def from_apt(name: str, folder: Path) -> Path:
        asked.append(name)
        raise Unavailable(f"apt-get download {name}: timed out")

    monkeypatch.setattr(packages_file, "from_apt", from_apt)
    packages = Packages(tmp_path)
    for read in (documents.gimp_figures, text.gimp_text):
        with pytest.raises(Unavailable, match="timed out"):
            next(read(packages))
    assert asked == ["gimp-help-en"]


def test_versions_are_those_that_were_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_apt(name: str, folder: Path) -> Path:
        (folder / name / "root").mkdir(parents=True)
        (folder / name / f"{name}_4%3a22.12-1_all.deb").touch()
        return folder / name / "root"

    monkeypatch.setattr(packages_file, "from_apt", from_apt)
    packages = Packages(tmp_path)
    assert packages.apt("maps") == packages.apt("maps")
    assert packages.used == ["apt maps 4:22.12-1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["DIR", "--only", "stamp"], "no source is called 'stamp'; did you mean 'stamps'?"),
        (["--only", "stamps", "DIR"], "no source is called 'DIR'"),
        (["--only", "stamps"], "DIR is missing"),
        ([], "DIR is missing"),
        (["DIR", "--onyl", "stamps"], "unrecognized arguments: --onyl stamps; write: mmframe data offline DIR"),
        (["FILE/x", "--only", "easy_vqa"], "cannot write "),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run(*(word.replace("FILE", str(tmp_path / "file")) for word in words)) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_the_list_needs_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list") == 0
    said = capsys.readouterr().out
    assert all(f"{source.name} " in said and f"licence: {source.licence}" in said for source in SOURCES)
    assert len({source.name for source in SOURCES}) == len(SOURCES)


def test_help_answers_without_loading_anything(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys; from mmframe.cli.main import main; assert main(['data', '--help']) == 0; "
        "assert not {'torch', 'PIL', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_real_packages(tmp_path: Path) -> None:
    """Some of the small ones, from all three registries; the counts are those of the versions of 2026."""
    if run(tmp_path, "--only", "maps", "flags", "numbers", "easy_vqa", "handbook", "wordnet"):
        pytest.skip("no package registry can be reached")
    known = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/source.json")}
    assert known.get("maps", {"pictures": 154})["pictures"] == 154
    assert known.get("numbers", {"pictures": 2806})["pictures"] == 2806
    for name, facts in known.items():
        assert facts["bytes"] > 1e6 and facts["packages"], name
