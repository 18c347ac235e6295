"""Pictures from files: what a person sees, as RGB; and one line for each that cannot be read."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from mmframe import images
from mmframe.data.records import TileStore
from mmframe.errors import UserError
from mmframe.images import image_size, open_image
from tests.data.support import FIXTURES, fixture_text, picture, processor

PREPROCESS = FIXTURES / "preprocess"
NAMES = sorted(fixture_text("preprocess/preprocess.json")["images"])


def upright() -> Image.Image:
    """6 x 4, every pixel another colour."""
    pixels = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3
    return Image.fromarray(pixels)


LYING = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera that writes this orientation has stored an upright scene."""


# ---- what is read


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_s_pictures_are_opened_as_the_reference_does(name: str) -> None:
    file = PREPROCESS / name
    with Image.open(file) as image:
        plain = np.asarray(image.convert("RGB"))
        size = image.size
    for source in (file, str(file), file.read_bytes(), io.BytesIO(file.read_bytes())):
        opened = open_image(source)
        assert opened.mode == "RGB" and np.array_equal(np.asarray(opened), plain)
        assert image_size(source) == opened.size == size
    with file.open("rb") as stream:
        assert np.array_equal(np.asarray(open_image(stream)), plain)


@pytest.mark.parametrize("orientation", sorted(LYING))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(form: str, orientation: int, tmp_path: Path) -> None:
    turn, file = LYING[orientation], tmp_path / f"photo.{form}"
    stored = upright() if turn is None else upright().transpose(turn)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored.save(file, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    opened = open_image(file)
    assert opened.size == image_size(file) == (6, 4)
    difference = np.abs(np.asarray(opened).astype(int) - np.asarray(upright()))
    assert difference.max() <= (60 if form == "JPEG" else 0)  # a JPEG of noise is only similar
    again = io.BytesIO()
    opened.save(again, "PNG")
    assert image_size(again.getvalue()) == (6, 4), "the orientation must not be applied twice"


def test_size_needs_the_header_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        picture((40, 30)).save(tmp_path / form, form)

    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    for plugin in ("ImageFile.ImageFile", "WebPImagePlugin.WebPImageFile", "PngImagePlugin.PngImageFile"):
        monkeypatch.setattr(f"PIL.{plugin}.load", decode)
    for file in tmp_path.iterdir():
        assert image_size(file) == (40, 30)


def test_colours_of_cmyk(tmp_path: Path) -> None:
    picture((8, 8), (200, 30, 60)).convert("CMYK").save(tmp_path / "print.jpg", quality=100)
    red, green, blue = np.asarray(open_image(tmp_path / "print.jpg")).reshape(-1, 3).mean(0)
    assert abs(red - 200) < 6 and abs(green - 30) < 6 and abs(blue - 60) < 6


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128, 255])])
def test_palettes_with_and_without_transparency(transparency: int | bytes | None, tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    options = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "palette.png", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = open_image(tmp_path / "palette.png")
    assert np.asarray(opened).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_and_not_composited(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0)).convert(mode)
    image.save(tmp_path / "clear.png")
    assert np.array_equal(np.asarray(open_image(tmp_path / "clear.png")), np.asarray(image.convert("RGB")))
    assert np.asarray(open_image(tmp_path / "clear.png")).max() > 0


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 128, 257, 32768, 65535]], dtype=np.uint16)
    expected = [0, 0, 1, 128, 255]
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert np.asarray(open_image(tmp_path / name))[0, :, 1].tolist() == expected
    big = Image.fromarray(values.astype(">u2"))
    assert np.asarray(images.to_rgb(big))[0, :, 0].tolist() == expected
    assert images.cut_tiles(Image.fromarray(values), 1, 1).float().mean() > 50  # not the 200 that clipping gives


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 7.4, 255]], np.float32), [0, 7, 255]),
        (np.array([[0, 32768, 65535]], np.float32), [0, 128, 255]),
        (np.array([[-1, np.nan, np.inf]], np.float32), [0, 0, 0]),
        (np.array([[0, 1.5e6, 2e6]], np.float32), [0, 191, 255]),
        (np.array([[0, 1, 255]], np.int32), [0, 1, 255]),
        (np.array([[-5, 256, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 0, 0]], np.int32), [0, 0, 0]),
    ],
)
def test_floats_and_32_bit_integers(values: np.ndarray, expected: list[int], tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "values.tif")
    assert np.asarray(open_image(tmp_path / "values.tif"))[0, :, 2].tolist() == expected


def test_one_bit(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert np.asarray(open_image(tmp_path / "bits.png"))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(form: str, tmp_path: Path) -> None:
    frames = [picture((9, 7), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    options = {"lossless": True} if form == "WEBP" else {}
    frames[0].save(tmp_path / "moving", form, save_all=True, append_images=frames[1:], **options)
    opened = open_image(tmp_path / "moving")
    assert opened.size == image_size(tmp_path / "moving") == (9, 7)
    red, green, blue = opened.getpixel((3, 3))  # type: ignore[misc]
    assert red > 240 and green < 10 and blue < 10


def test_a_broken_exif_block_does_not_hide_the_picture(tmp_path: Path) -> None:
    upright().save(tmp_path / "photo.webp", lossless=True, exif=b"Exif\0\0rubbish that is no TIFF header")
    assert open_image(tmp_path / "photo.webp").size == image_size(tmp_path / "photo.webp") == (6, 4)


# ---- what is refused


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises more than it holds."""
    chunk = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(chunk)) + b"IHDR" + chunk
    data = zlib.compress(bytes(1000))
    body = struct.pack(">I", zlib.crc32(b"IHDR" + chunk)) + struct.pack(">I", len(data)) + b"IDAT" + data
    return start + body + struct.pack(">I", zlib.crc32(b"IDAT" + data)) + struct.pack(">I", 0) + b"IEND\xaeB`\x82"


def test_too_many_pixels_are_refused_by_the_header(tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    for size in [(10_000, 9_000), (60_000, 60_000)]:  # above our limit, and above Pillow's own
        file.write_bytes(png_header(*size))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UserError, match=r"cannot read the picture .*bomb\.png") as caught:
                open_image(file)
        assert "pixels" in str(caught.value)
    file.write_bytes(png_header(10_000, 9_000))
    with pytest.raises(UserError, match="10000 x 9000 = 90,000,000 pixels, more than the limit of 89,478,485; make th"):
        open_image(file)
    assert image_size(file) == (10_000, 9_000)
    picture((20, 10)).save(tmp_path / "small.png")
    assert open_image(tmp_path / "small.png", max_pixels=200).size == (20, 10)
    with pytest.raises(UserError, match="20 x 10 = 200 pixels, more than the limit of 199"):
        open_image(tmp_path / "small.png", max_pixels=199)


def test_what_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    picture((500, 500)).save(tmp_path / "whole.jpg")
    whole = {"half.jpg": tmp_path / "whole.jpg", "half.png": PREPROCESS / "sq_noise_60x60.png"}
    for name, file in whole.items():
        (tmp_path / name).write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.png").write_text("<html>not found</html>")
    (tmp_path / "rubbish.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    for name, reason in [
        ("nothing.png", "there is no such file"),
        ("", "it is a folder"),
        ("empty.png", "the file is empty"),
        ("page.png", "not a picture of a format that Pillow knows"),
        ("half.jpg", "truncated"),
        ("half.png", "truncated"),
        ("rubbish.png", "PNG|picture"),
    ]:
        with pytest.raises(UserError, match=f"cannot read the picture .*{name}.*(?:{reason})") as caught:
            open_image(tmp_path / name)
        assert "\n" not in str(caught.value)
        if name not in ("half.jpg", "half.png"):  # their headers are whole
            with pytest.raises(UserError, match="cannot read the picture"):
                image_size(tmp_path / name)
    with pytest.raises(UserError, match="cannot read the picture of 0 bytes: the file is empty"):
        open_image(b"")
    with pytest.raises(UserError, match="cannot read the picture of 3 bytes: not a picture"):
        open_image(b"abc")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on its way to an error
def test_corrupt_bytes_anywhere_are_a_user_error_or_a_picture() -> None:
    for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = io.BytesIO()
        upright().resize((40, 40)).save(whole, form)
        data = whole.getvalue()
        for place in range(0, len(data), max(1, len(data) // 40)):
            for broken in (data[:place], data[:place] + b"\xff\x00\xff\xff" + data[place + 4 :]):
                try:
                    assert open_image(broken).mode == "RGB"
                except UserError as error:
                    assert "\n" not in str(error)


def test_a_sample_s_pictures_are_read_so_and_named(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photo.png", exif=exif)
    store = TileStore(processor(), 8, 10**6)
    (tiles,) = store.load([tmp_path / "photo.png"], 1, "s:1")
    assert torch.equal(tiles, images.cut_tiles(upright(), 8, 1))
    (tmp_path / "bomb.png").write_bytes(png_header(10_000, 9_000))
    for name, reason in [("bomb.png", "90,000,000 pixels"), ("gone.png", "no such file")]:
        with pytest.raises(UserError, match=rf"sample 's:2': cannot read the picture .*{name}.*{reason}"):
            store.load([tmp_path / name], 1, "s:2")
