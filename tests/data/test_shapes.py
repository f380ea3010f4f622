import numpy as np
import pytest
from layouts import OVERLAPPING, SIZE, SQUARE, UNION, box_mask, rle, runs, write_mask
from pycocotools import mask as coco

from segue.data import shapes
from segue.errors import DataError, MediaError
from segue.geometry import masks


def dense(counts, size=SIZE):
    return coco.decode({"size": list(size), "counts": counts.encode()}).astype(bool)


def test_overlapping_polygons_are_united_and_never_summed():
    mask = dense(shapes.polygons_mask(OVERLAPPING, SIZE))
    assert mask.dtype == bool
    assert mask.sum() == UNION
    assert mask[20, 25], "the overlap is inside, not a hole"


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([5, 5], "2 numbers"),
        ([5, 5, 20, 20], "4 numbers"),
        ([5, 5, 20, 20, 5], "5 numbers"),
        ([5, 5, float("nan"), 20, 5, 20], "no number"),
        ([5, 5, "20", 20, 5, 20], "no number"),
        ([[5, 5], [20, 5], [20, 20]], "flat list"),
        ([5, 5, 5, 5, 5, 5], "cover no pixel"),
        ([5, 5, 62, 5, 20, 20], "outside its image of 60x40"),
        ([-2, 5, 20, 5, 20, 20], "outside its image"),
    ],
)
def test_a_1_point_polygon_and_other_bad_ones_are_told(polygon, message):
    with pytest.raises(DataError, match=message):
        shapes.polygons_mask([SQUARE, polygon] if "cover" not in message else [polygon], SIZE)


def test_a_polygon_may_round_outwards_by_a_pixel():
    assert dense(shapes.polygons_mask([[-0.5, -1, 61, -1, 61, 41, -0.5, 41]], SIZE)).all()


def test_800_pixel_polygons_on_a_512_pixel_image_are_refused_or_scaled_where_their_size_is_stated():
    polygon = [100, 100, 700, 100, 700, 500, 100, 500]
    with pytest.raises(DataError, match=r"\[700.0, 500.0\].*outside its image of 512x512.*state that size"):
        shapes.polygons_mask([polygon], (512, 512))
    mask = dense(shapes.polygons_mask([polygon], (512, 512), drawn_on=(800, 800)), (512, 512))
    assert masks.box_of(mask).tolist() == [64, 64, 448, 320]
    with pytest.raises(DataError, match="another shape"):
        shapes.polygons_mask([polygon], (512, 512), drawn_on=(600, 800))


@pytest.mark.parametrize("form", [rle, runs, lambda mask: {**rle(mask), "counts": rle(mask)["counts"].encode()}])
def test_run_lengths_are_read_in_every_form(form):
    mask = box_mask(3, 4, 20, 10)
    assert (dense(shapes.segmentation_mask(form(mask), SIZE)) == mask).all()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (rle(box_mask(0, 0, 5, 5, (40, 61))), "61x40 pixels on an image of 60x40"),
        (rle(box_mask(0, 0, 0, 0)), "empty"),
        ({"counts": "x"}, "expected a COCO RLE"),
        ([], "no segmentation"),
        (None, "no segmentation"),
    ],
)
def test_wrong_and_empty_masks_are_told(segmentation, message):
    with pytest.raises(DataError, match=message):
        shapes.segmentation_mask(segmentation, SIZE)


def test_runs_along_rows_lie_in_their_box():
    mask = dense(shapes.rows_mask([1, 3, 2, 2], (10, 20, 4, 2), SIZE))
    assert np.argwhere(mask).tolist() == [[20, 11], [20, 12], [20, 13], [21, 12], [21, 13]]
    with pytest.raises(DataError, match="cover 7 pixels where its box"):
        shapes.rows_mask([1, 3, 3], (10, 20, 4, 2), SIZE)
    with pytest.raises(DataError, match="outside its image"):
        shapes.rows_mask([8], (58, 20, 4, 2), SIZE)


def test_a_region_has_the_box_of_the_first_frame_it_is_seen_on():
    seen = box_mask(7, 8, 9, 10)
    track = shapes.track([shapes.empty(SIZE), masks.encode(seen)], (0, 4), SIZE)
    assert shapes.region("dog", track).box.tolist() == masks.box_of(seen).tolist() == [7, 8, 16, 18]
    assert shapes.region("dog", shapes.track([shapes.empty(SIZE)], (0,), SIZE)).box is None


def test_no_masks_unite_to_an_empty_one():
    assert not dense(shapes.united([], SIZE)).any()


def test_a_mask_picture_keeps_its_values(tmp_path):
    values = np.zeros(SIZE, np.uint8)
    values[3, 4] = 7
    assert shapes.read_values(write_mask(tmp_path / "grey.png", values), SIZE)[3, 4] == 7
    colour = np.repeat(values[..., None], 3, axis=-1)
    assert shapes.read_values(write_mask(tmp_path / "grey_as_rgb.png", colour), SIZE)[3, 4] == 7
    colour[3, 4, 0] = 0
    colour[3, 5] = (0, 0, 9)
    with pytest.raises(DataError, match="picture of several colours"):
        shapes.read_values(write_mask(tmp_path / "colour.png", colour), SIZE)
    with pytest.raises(DataError, match="60x40 pixels, its image 64x64"):
        shapes.read_values(tmp_path / "grey.png", (64, 64))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    with pytest.raises(MediaError, match="broken.png is damaged"):
        shapes.read_values(tmp_path / "broken.png", SIZE)
