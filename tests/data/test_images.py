"""Tiling: the reference's grids and pixels, and the number of tiles known before reading a picture."""

import hashlib
import random
import re
from fractions import Fraction

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from mmframe import images
from tests.data.support import FIXTURES, fixture_text, picture

PREPROCESS = fixture_text("preprocess/preprocess.json")
REFERENCE_PILLOW = "13.0.0"  # tests/fixtures/reference/meta.json
PIXELS = np.load(FIXTURES / "preprocess" / "pixels_56.npz")


def test_grids_of_171_sizes_are_the_reference_s() -> None:
    settings = [tuple(map(int, re.findall(r"\d+", column)[:3])) for column in PREPROCESS["columns"][2:]]
    assert len(PREPROCESS["size_table"]) == 171
    for width, height, *expected in PREPROCESS["size_table"]:
        for (tile, least, most), (cols, rows, count) in zip(settings, expected, strict=True):
            assert images.choose_grid(width, height, tile, most, least) == (cols, rows), (width, height, tile, most)
            if least == 1:
                assert images.count_tiles(width, height, tile, most) == count


@pytest.mark.parametrize("key", sorted(PIXELS))
def test_pixels_are_the_reference_s(key: str) -> None:
    name, setting, content = key.split("|")
    tiles = images.cut_tiles(Image.open(FIXTURES / "preprocess" / name), 56, int(setting.removeprefix("max")))
    if content == "tiles_u8":
        difference = np.abs(tiles.permute(0, 2, 3, 1).numpy().astype(int) - PIXELS[key])
        assert difference.max() <= 1  # exact with the Pillow that made them, one step with another
    else:
        pixels = images.normalize(tiles, images.IMAGENET_MEAN, images.IMAGENET_STD)
        np.testing.assert_allclose(pixels.numpy(), PIXELS[key], atol=1 / 255 / 0.22 + 1e-6)


@pytest.mark.parametrize("name", sorted(PREPROCESS["images"]))
def test_number_of_tiles_of_the_reference_s_pictures(name: str) -> None:
    for run in PREPROCESS["images"][name]["runs"]:
        tiles = images.cut_tiles(Image.open(FIXTURES / "preprocess" / name), run["image_size"], run["max_num"])
        assert len(tiles) == run["n_tiles"]
        assert images.normalize(tiles, images.IMAGENET_MEAN, images.IMAGENET_STD).mean() == pytest.approx(
            run["pixel_mean"], abs=2e-3
        )
        if PIL.__version__ == REFERENCE_PILLOW:  # another Pillow agrees within one step only
            digest = hashlib.sha256(tiles.permute(0, 2, 3, 1).contiguous().numpy().tobytes()).hexdigest()
            assert digest == run["u8_sha256"]


def test_tiles_are_row_major_and_the_thumbnail_is_last() -> None:
    quarters = np.zeros((40, 40, 3), dtype=np.uint8)
    quarters[:20, :20], quarters[:20, 20:], quarters[20:, :20], quarters[20:, 20:] = 10, 20, 30, 40
    tiles = images.cut_tiles(Image.fromarray(quarters), 20, 4)
    assert [int(tile.float().median()) for tile in tiles[:4]] == [10, 20, 30, 40]
    assert len(tiles) == 5 and len(torch.unique(tiles[4])) > 1


def test_one_tile_is_the_whole_picture_and_no_thumbnail() -> None:
    assert images.cut_tiles(picture((300, 20)), 16, max_tiles=1).shape == (1, 3, 16, 16)


def test_equal_areas_never_tie_so_the_order_of_grids_does_not_matter() -> None:
    for most in range(1, 41):
        ratios: dict[Fraction, set[int]] = {}
        for cols, rows in images._grids(1, most):
            ratios.setdefault(Fraction(cols, rows), set()).add(cols * rows)
        ordered = sorted(ratios)
        for near, far in zip(ordered, ordered[1:], strict=False):  # only neighbours can be equally far from a picture
            assert not ratios[near] & ratios[far], (most, near, far)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert images.cut_tiles(Image.new(mode, (9, 30)), 8, 3).shape[1:] == (3, 8, 8)


def test_count_is_what_cutting_gives_for_any_size() -> None:
    draw = random.Random(0)
    for _ in range(60):
        width, height, most = draw.randint(1, 900), draw.randint(1, 900), draw.randint(1, 12)
        tiles = images.cut_tiles(Image.new("L", (width, height)), 8, most)
        assert len(tiles) == images.count_tiles(width, height, 8, most)


def test_count_is_bounded_for_sizes_up_to_4000() -> None:
    draw = random.Random(1)
    for _ in range(3000):
        width, height, most = draw.randint(1, 4000), draw.randint(1, 4000), draw.randint(1, 40)
        count = images.count_tiles(width, height, 448, most)
        assert count == 1 or 3 <= count <= most + 1


def test_subtract_median_makes_a_flat_background_zero() -> None:
    square = picture((16, 16), (90, 160, 30))
    square.paste((250, 0, 0), (4, 4, 8, 8))
    pixels = images.normalize(images.cut_tiles(square, 16, 1), (0, 0, 0), (0.5, 0.5, 0.5), subtract_median=True)
    assert pixels[0, :, 0, 0].abs().max() == 0
    assert pixels[0, 0, 5, 5] == pytest.approx((250 - 90) / 255 / 0.5)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="0x5 picture"):
        images.choose_grid(0, 5, 8, 4)
