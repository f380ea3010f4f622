import numpy as np
import pytest
from pycocotools import mask as coco

from segue.geometry import boxes


def random_boxes(count, seed):
    corners = np.random.default_rng(seed).integers(-5, 30, size=(count, 2, 2))
    return np.sort(corners, axis=1).reshape(count, 4).astype(np.float64)


def test_iou_of_every_pair_equals_pycocotools():
    first, second = random_boxes(7, seed=1), random_boxes(5, seed=2)
    expected = coco.iou(boxes.to_xywh(first), boxes.to_xywh(second), [0] * 5)
    np.testing.assert_allclose(boxes.iou(first, second), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0, 0, 4, 4], [0, 0, 4, 4], 1.0),
        ([0, 0, 4, 4], [2, 0, 6, 4], 1 / 3),
        ([0, 0, 4, 4], [4, 0, 8, 4], 0.0),
        ([0.5, 0, 1.5, 1], [1, 0, 2, 1], 1 / 3),
        ([0, 0, 4, 4], [4, 4, 0, 0], 0.0),
        ([3, 3, 3, 3], [3, 3, 3, 3], 0.0),
    ],
    ids=["same", "half", "touching", "fractions", "inverted", "both empty"],
)
def test_iou_of_one_pair(first, second, expected):
    pair = boxes.iou(np.array([first], dtype=np.float64), np.array([second], dtype=np.float64))
    assert pair[0, 0] == pytest.approx(expected)


def test_iou_without_boxes_has_no_rows():
    assert boxes.iou(np.zeros((0, 4)), random_boxes(3, seed=0)).shape == (0, 3)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4]),
        ([-5, -5, 30, 30], [0, 0, 20, 10]),
        ([25, 3, 40, 8], [20, 3, 20, 8]),
    ],
    ids=["inside", "larger than the frame", "outside"],
)
def test_clip_keeps_what_is_inside_the_frame(box, expected):
    clipped = boxes.clip(np.array(box, dtype=np.float32), (10, 20))
    assert clipped.tolist() == expected
    assert clipped.dtype == np.float32


def test_xywh_round_trip_keeps_boxes():
    given = random_boxes(20, seed=3)
    np.testing.assert_array_equal(boxes.from_xywh(boxes.to_xywh(given)), given)


def test_xywh_of_one_box_is_left_top_width_height():
    assert boxes.to_xywh(np.array([2.0, 3.0, 10.0, 5.0])).tolist() == [2, 3, 8, 2]
