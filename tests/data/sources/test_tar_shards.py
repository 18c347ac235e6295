"""Tar shards: samples by their names, all kinds of tar, far away, and damaged."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from components.sources.tar_shards import TarShards
from mmframe.data.tar import members
from mmframe.errors import BadRecord, UserError
from tests.data.sources.builders import chat, colour, picture, shard, write_tar


def opened(shards: Any) -> TarShards:
    source = TarShards(shards if isinstance(shards, list) else str(shards))
    source.open()
    return source


def test_members_of_one_name_are_a_sample(tmp_path: Path) -> None:
    img2dataset = {"caption": "of img2dataset", "url": "x", "status": "success", "width": 4}
    source = opened(
        write_tar(
            tmp_path / "a.tar",
            {
                "000.png": picture(1), "000.txt": "ein Bild, größer ".encode(), "000.cls": b"7",
                "001.PNG": picture(2), "001.json": json.dumps(img2dataset).encode(), "001.txt": b"not this",
                "in/002.json": json.dumps(chat(5)).encode(), "in/002.jpeg": picture(3),
                "003.png": picture(4), "003.json": b'{"url": "x", "caption": null}', "003.txt": b"beside",
                "004.json": b'{"text": "no picture"}',
                "005.json": b'{"questions": [["q", "a"]]}', "005.png": picture(6),
            },
        )
    )  # fmt: skip
    found = [source.record(number) for number in range(len(source))]
    assert [record.key.rpartition(":")[2] for record in found] == ["000", "001", "in/002", "003", "004", "005"]
    assert [record.caption for record in found] == ["ein Bild, größer", "of img2dataset", None, "beside", None, None]
    assert [colour(record) for record in found if record.images] == [1, 2, 3, 4, 6]
    assert found[2].conversation == tuple(chat(5)["conversations"])
    assert found[4].text == "no picture" and found[5].questions == (("q", "a"),)
    assert str(found[0].images[0]) == f"{tmp_path}/a.tar!000.png" and found[0].key == f"{tmp_path.name}/a:000"


def test_two_pictures_of_a_sample_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["x.10.png", "x.2.png", "x.txt", "y.png", "y.1.png", "y.json", "www.site.7.png", "www.site.7.txt"]
    said = {"txt": b"a caption", "json": b'{"caption": "c"}'}
    members = {name: said.get(name.rpartition(".")[2]) or picture(number) for number, name in enumerate(names)}
    source = opened(write_tar(tmp_path / "a.tar", members))
    found = [source.record(number) for number in range(len(source))]
    assert [[colour(record, place) for place in range(len(record.images))] for record in found] == [[1, 0], [3, 4], [6]]
    assert [record.key.rpartition(":")[2] for record in found] == ["x", "y", "www.site.7"]


def test_bad_samples_say_why(tmp_path: Path) -> None:
    bad = {
        "a.png": (picture(), "no caption"),
        "b.txt": (b"of nothing", "picture missing"),
        "c.json": (b"{", "not JSON"),
        "d.json": (b"[]", "not a record"),
        "e.json": (b'{"conversations": [{"from": "robot", "value": "x"}]}', "unknown role"),
        "f.json": (b"{}", "no caption"),
    }
    members: dict[str, bytes] = {name: data for name, (data, _) in bad.items()}
    members |= {"g.png": picture(), "g.txt": b"\xff\xfe"}
    source = opened(write_tar(tmp_path / "a.tar", members))
    reasons = []
    for number in range(len(source)):
        with pytest.raises(BadRecord) as caught:
            source.record(number)
        assert "\n" not in str(caught.value) and "a" in str(caught.value)
        reasons.append(caught.value.reason)
    assert reasons == [reason for _, reason in bad.values()] + ["not Unicode"]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar(tmp_path: Path, format: int) -> None:
    """Long names, names that are not ASCII, times with a fraction, folders and links."""
    file = tmp_path / "a.tar"
    names = ["0.png", "a/" * 60 + "1.png", "größer/2.png", "x" * 90 + ".png"]
    with tarfile.open(file, "w", format=format) as tar:
        for number, name in enumerate(names):
            about = tarfile.TarInfo(name)
            about.size, about.mtime = len(picture(number)), 1.5 if number else 0
            tar.addfile(about, io.BytesIO(picture(number)))
            folder = tarfile.TarInfo(f"folder{number}")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            link = tarfile.TarInfo(f"link{number}.png")
            link.type, link.linkname = tarfile.SYMTYPE, names[0]
            tar.addfile(link)
    with tarfile.open(file) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]
    assert [tuple(member) for member in members(str(file))] == expected and len(expected) == len(names)


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the tar program")
@pytest.mark.parametrize("format", ["gnu", "ustar", "pax", "v7"])
def test_what_the_tar_program_makes(tmp_path: Path, format: str) -> None:
    (tmp_path / "set").mkdir()
    for number in range(20):
        (tmp_path / f"set/{number}.png").write_bytes(picture(number))
        (tmp_path / f"set/{number}.txt").write_text(f"caption {number}")
    subprocess.run(["tar", f"--format={format}", "-cf", "a.tar", "set"], cwd=tmp_path, check=True)
    source = opened(tmp_path / "a.tar")
    found = [source.record(number) for number in range(len(source))]
    assert sorted((record.caption, colour(record)) for record in found) == sorted(
        (f"caption {number}", number) for number in range(20)
    )


def test_patterns_lists_and_folders(tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / f"{number:05d}.tar", first=4 * number)
    for shards in ("{00000..00002}.tar", "*.tar", ""):
        source = opened(tmp_path / shards)
        assert [colour(source.record(number)) for number in range(len(source))] == list(range(12))
    assert [name for name, _ in source.files()] == ["00000.tar", "00001.tar", "00002.tar"]
    assert len(opened([str(tmp_path / "00002.tar"), str(tmp_path / "0000[01].tar")])) == 12
    with pytest.raises(UserError, match=r"00003\.tar does not exist \(2 of the 5 files"):
        opened(tmp_path / "{00000..00004}.tar")


def test_a_compressed_shard_is_unpacked_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in ("tar.gz", "tgz"):
        file = shard(tmp_path / suffix / f"a.{suffix}")
        for _ in range(2):
            source = opened(file)
            assert [colour(source.record(number)) for number in range(4)] == [0, 1, 2, 3]
        assert source.record(0).key == f"{suffix}/a:000000"
    assert capsys.readouterr().out.count("unpacking") == 2


@pytest.mark.parametrize("place", ["memory://far", "file://{tmp}"])
def test_shards_at_a_url(tmp_path: Path, place: str) -> None:
    import fsspec

    for number in range(2):
        local = shard(tmp_path / f"{number}.tar", first=4 * number)
        fsspec.filesystem("memory").pipe(f"/far/{number}.tar", local.read_bytes())
    packed = shard(tmp_path / "z.tar.gz", first=8)
    fsspec.filesystem("memory").pipe("/far/z.tar.gz", packed.read_bytes())
    url = place.replace("{tmp}", str(tmp_path))
    for shards in (f"{url}/{{0..1}}.tar", f"{url}/*.tar", [f"{url}/0.tar", f"{url}/1.tar"]):
        source = opened(shards)
        assert [colour(source.record(number)) for number in range(len(source))] == list(range(8))
        assert [source.record(number).caption for number in range(8)] == [f"caption {number}" for number in range(8)]
    assert colour(opened(f"{url}/z.tar.gz").record(3)) == 11


def test_damaged_shards_are_told(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    whole = shard(file).read_bytes()
    for data, message in [
        (b"", "is no plain tar archive.* the file is empty"),
        (b"no tar at all" * 100, "is no plain tar archive"),
        (whole[:560], r"cut off after its beginning \(0 files\): the file ends inside of 000000\.png"),
        (whole[:700], r"cut off after 000000\.png \(1 files\): the file ends inside of a block"),
        (whole[: 512 * 5 + 10], r"cut off after .*\(\d files\)"),
        (whole[:2048] + b"\x01" * 512 + whole[2560:], r"damaged or cut off after 00000\d\.(png|txt) \(\d files\)"),
    ]:
        file.write_bytes(data)
        with pytest.raises(UserError, match=message) as caught:
            opened(file)
        assert "\n" not in str(caught.value) and str(file) in str(caught.value)
    write_tar(file, {"a.cls": b"7"})
    with pytest.raises(UserError, match="holds no records"):
        opened(file)


def test_a_shard_without_samples_among_others_is_no_mistake(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar"), write_tar(tmp_path / "1.tar", {}), shard(tmp_path / "2.tar", first=4)
    source = opened(tmp_path / "*.tar")
    assert [colour(source.record(number)) for number in range(len(source))] == list(range(8))
