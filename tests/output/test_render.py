"""Overlays: what is drawn where."""

from itertools import combinations

import numpy as np
import pytest

from segue.errors import DataError
from segue.output.render import COLOURS, colour_of, overlay, side_by_side

GREY = np.full((120, 160, 3), 128, dtype=np.uint8)
# What the three kinds of colour blindness make of linear RGB. Source: Machado et al. 2009, severity 1.
SIGHTS = {
    "full": np.eye(3),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritanopia": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


def disc(x, y, radius, size=(120, 160)):
    rows, columns = np.ogrid[: size[0], : size[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def oklab(colour, sight):
    """The perceived colour: OKLab of an sRGB colour, seen through `sight`. Source: Ottosson 2020."""
    linear = np.clip(sight @ (np.array(colour) / 255) ** 2.2, 0, 1)
    cones = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
    mixed = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
    return np.array(mixed) @ np.cbrt(np.array(cones) @ linear)


@pytest.mark.parametrize("sight", SIGHTS.values(), ids=SIGHTS)
def test_the_first_seven_colours_differ_for_every_eye(sight):
    seen = [oklab(colour, sight) for colour in COLOURS]
    assert min(np.linalg.norm(one - other) for one, other in combinations(seen, 2)) > 0.095


def test_twenty_one_objects_have_colours_of_their_own():
    assert len({colour_of(number) for number in range(21)}) == 21
    assert colour_of(21) == colour_of(0)


def test_nothing_to_draw_gives_a_copy():
    drawn = overlay(GREY, np.zeros((0, 120, 160), dtype=bool), [])
    np.testing.assert_array_equal(drawn, GREY)
    drawn[:] = 0
    assert GREY.min() == 128


def test_an_object_without_pixels_or_label_draws_nothing_more():
    masks = np.stack([np.zeros((120, 160), dtype=bool), disc(80, 60, 20)])
    alone = overlay(GREY, masks, ["unseen", ""])
    assert (alone[:35] == 128).all() and (alone[85:] == 128).all()
    assert (alone[60, 80] != 128).any()


def test_the_fill_is_translucent_in_the_objects_own_colour():
    image = np.random.default_rng(0).integers(0, 256, GREY.shape, dtype=np.uint8)
    for number in range(3):
        masks = np.zeros((3, 120, 160), dtype=bool)
        masks[number] = disc(80, 60, 30)
        drawn = overlay(image, masks, [""] * 3)[50:70, 70:90].astype(float)
        expected = image[50:70, 70:90] * 0.55 + np.array(colour_of(number)) * 0.45
        np.testing.assert_allclose(drawn, expected, atol=1.5)


def test_any_number_of_overlapping_masks_stays_within_their_colours():
    masks = np.ones((40, 120, 160), dtype=bool)
    white = overlay(np.full_like(GREY, 255), masks, [""] * 40)
    black = overlay(np.zeros_like(GREY), masks, [""] * 40)
    assert white.min() >= 255 * 0.54, "a sum that wraps around would turn dark"
    assert black.max() <= 255 * 0.46, "a sum that saturates would turn white"


def test_a_small_object_on_a_large_one_keeps_its_hue_whatever_their_order():
    small, large = disc(80, 60, 12), disc(80, 60, 50)
    for first, second, own in ((small, large, 0), (large, small, 1)):
        drawn = overlay(GREY, np.stack([first, second]), ["", ""])[60, 80].astype(float)
        distances = [
            np.abs(drawn - (GREY[0, 0] * 0.55 + np.array(colour_of(number)) * 0.45)).sum() for number in (0, 1)
        ]
        assert np.argmin(distances) == own


def test_the_outline_follows_the_edge_in_full_colour():
    drawn = overlay(GREY, disc(80, 60, 40)[None], [""])
    near_edge = drawn[60, 36:46].astype(int)
    assert np.abs(near_edge - colour_of(0)).sum(axis=1).min() < 60
    assert np.abs(drawn[60, 80].astype(int) - colour_of(0)).sum() > 100, "the inside is translucent"


def test_the_outline_grows_with_the_image():
    def line_width(scale):
        size = (120 * scale, 160 * scale)
        drawn = overlay(np.full((*size, 3), 128, np.uint8), disc(80 * scale, 60 * scale, 40 * scale, size)[None], [""])
        return (np.abs(drawn[60 * scale, : 80 * scale].astype(int) - colour_of(0)).sum(axis=1) < 60).sum()

    assert line_width(16) >= 2 * line_width(3) >= 2


def label_boxes(drawn, without):
    """Rows and columns that a label changed: (left, top, right, bottom)."""
    rows, columns = np.nonzero((drawn != without).any(axis=-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize(("x", "y"), [(80, 80), (2, 2), (158, 2), (2, 118), (158, 118), (80, 10)])
def test_a_label_stays_inside_the_image_and_near_its_object(x, y):
    masks = disc(x, y, 14)[None]
    left, top, right, bottom = label_boxes(overlay(GREY, masks, ["cat"]), overlay(GREY, masks, [""]))
    assert 0 <= left < right <= 160 and 0 <= top < bottom <= 120
    assert abs((left + right) / 2 - x) < 40 and abs((top + bottom) / 2 - y) < 40


def test_labels_of_one_place_do_not_cover_one_another():
    image = np.full((300, 300, 3), 128, dtype=np.uint8)
    masks = np.stack([disc(150, 150, 60, (300, 300))] * 4)
    boxes = []
    for number in range(4):
        labels = [f"label {other}" if other <= number else "" for other in range(4)]
        fewer = [label if other < number else "" for other, label in enumerate(labels)]
        boxes.append(label_boxes(overlay(image, masks, labels), overlay(image, masks, fewer)))
    for one, other in combinations(boxes, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)


@pytest.mark.parametrize(
    ("label", "same_as"),
    [
        ("\u9a91\u8f66\u7684\u4eba", "object 1"),
        ("\u732b cat", "cat"),
        ("caf\u00e9", "cafe"),
        ("two\nlines\tand tabs", "two lines and tabs"),
    ],
)
def test_characters_the_font_lacks_are_left_out(label, same_as):
    masks = disc(80, 80, 20)[None]
    np.testing.assert_array_equal(overlay(GREY, masks, [label]), overlay(GREY, masks, [same_as]))


def test_a_label_too_long_for_the_image_is_cut():
    masks = disc(80, 80, 20)[None]
    left, _, right, _ = label_boxes(overlay(GREY, masks, ["very " * 50]), overlay(GREY, masks, [""]))
    assert right - left <= 160


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 2), (17, 9)])
def test_tiny_images_are_drawn_on(size):
    image = np.full((*size, 3), 128, dtype=np.uint8)
    drawn = overlay(image, np.ones((2, *size), dtype=bool), ["a long label", "b"])
    assert drawn.shape == image.shape
    assert (drawn != image).any()


def test_a_missing_label_is_an_error():
    with pytest.raises(DataError, match="2 masks have 1 labels"):
        overlay(GREY, np.zeros((2, 120, 160), dtype=bool), ["one"])


def test_side_by_side_shows_the_image_once_per_title_and_a_line_per_object_below():
    one, other = disc(40, 60, 20), disc(110, 60, 20)
    masks, image = np.stack([one, other]), np.full_like(GREY, (10, 200, 30))
    sheet = side_by_side(image, {"truth": masks, "answer": ~masks}, ["a", "b"])
    top, left = np.argwhere((sheet == image[0, 0]).all(axis=2)).min(axis=0)
    pictures = sheet[top : top + 120, left:]
    assert np.array_equal(pictures[:, :160], overlay(image, masks, ["", ""]))
    assert any(
        np.array_equal(pictures[:, start : start + 160], overlay(image, ~masks, ["", ""]))
        for start in range(160, pictures.shape[1] - 159)
    )
    below = sheet[top + 120 :]
    assert all((below == colour_of(number)).all(axis=2).any() for number in range(2))


def test_a_legend_needs_a_line_for_every_mask():
    with pytest.raises(DataError, match="2 masks have 1 labels"):
        side_by_side(GREY, {"truth": np.zeros((2, 120, 160), dtype=bool)}, ["a"])
