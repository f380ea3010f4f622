import numpy as np
import pytest
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from segue.models.tiling import choose_grid, resize, tile


@pytest.mark.parametrize(
    ("width", "height", "grid", "tiles"),
    [
        (1024, 1024, (3, 3), 10),
        (640, 480, (4, 3), 13),
        (1280, 720, (4, 2), 9),
        (854, 480, (2, 1), 3),
        (640, 427, (3, 2), 7),
        (448, 448, (1, 1), 1),
        (1, 1, (1, 1), 1),
        (5000, 10, (12, 1), 13),
        (10, 5000, (1, 12), 13),
    ],
)
def test_an_image_of_this_size_has_these_tiles(width, height, grid, tiles):
    assert choose_grid(width, height) == grid
    assert len(tile(Image.new("RGB", (width, height)))) == tiles


@pytest.mark.parametrize(("side", "grid"), [(633, (1, 1)), (634, (2, 2)), (950, (2, 2)), (951, (3, 3))])
def test_parity_tile_tie_break_goes_by_more_than_half_of_the_larger_grids_pixels(side, grid):
    # 0.5 * 448^2 * 4 lies between 633^2 and 634^2, and 0.5 * 448^2 * 9 between 950^2 and 951^2
    assert choose_grid(side, side) == grid


def test_the_grid_is_that_of_an_independent_implementation_for_random_sizes():
    draws = np.random.default_rng(0)
    sizes = np.concatenate([draws.integers(1, 3000, (1500, 2)), draws.integers(1, 60, (500, 2)) * 64]).tolist()
    differing = [
        (width, height, max_tiles)
        for number, (width, height) in enumerate(sizes)
        for max_tiles in [(12, 6, 1)[number % 3]]
        if choose_grid(width, height, max_tiles=max_tiles)
        != get_optimal_tiled_canvas((height, width), (448, 448), 1, max_tiles)
    ]
    assert differing == []


@pytest.mark.parametrize("max_tiles", [1, 2, 5, 12])
def test_a_grid_never_has_more_tiles_than_allowed(max_tiles):
    grids = [choose_grid(w, h, max_tiles=max_tiles) for w in (3, 70, 500, 2000) for h in (3, 70, 500, 2000)]
    assert max(columns * rows for columns, rows in grids) <= max_tiles


def test_tiles_stand_row_by_row_and_the_thumbnail_last():
    board = np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, 32, 0), 32, 1)
    tiles = tile(Image.fromarray(board), side=32)
    assert [np.asarray(square).max() for square in tiles[:6]] == [0, 40, 80, 120, 160, 200]
    assert np.array_equal(tiles[6], resize(Image.fromarray(board), 32, 32))
    assert len(tiles) == 7


def test_a_single_tile_has_no_thumbnail():
    assert len(tile(Image.new("RGB", (448, 448)))) == 1


def test_tiles_are_bit_for_bit_what_pillows_bicubic_filter_gives(picture):
    image = Image.fromarray(picture(200, 410))
    canvas = image.resize((4 * 64, 2 * 64), Image.Resampling.BICUBIC)
    expected = [canvas.crop((64 * c, 64 * r, 64 * c + 64, 64 * r + 64)) for r in range(2) for c in range(4)]
    expected.append(image.resize((64, 64), Image.Resampling.BICUBIC))
    tiles = tile(image, side=64, max_tiles=8)
    assert [np.array_equal(a, b) for a, b in zip(tiles, expected, strict=True)] == [True] * 9


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_tiles_are_rgb_whatever_the_image_is(mode, picture):
    image = Image.fromarray(picture()).convert(mode)
    tiles = tile(image, side=32)
    assert {(square.mode, square.size) for square in tiles} == {("RGB", (32, 32))}
    assert np.array_equal(tiles[-1], image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))
