import subprocess
import sys

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from segue.errors import ConfigError, DataError, LimitError
from segue.geometry import masks
from segue.types import MaskTrack

# pycocotools 2.0.11 decodes through an interface that numpy 2 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def blob(height, width, share, seed):
    return np.random.default_rng(seed).random((height, width)) < share


MASKS = {
    "empty": np.zeros((5, 7), dtype=bool),
    "full": np.ones((5, 7), dtype=bool),
    "one pixel off": np.zeros((1, 1), dtype=bool),
    "one pixel on": np.ones((1, 1), dtype=bool),
    "one row": blob(1, 40, 0.5, seed=1),
    "one column": blob(40, 1, 0.5, seed=2),
    "last pixel only": np.pad(np.ones((1, 1), dtype=bool), ((8, 0), (3, 0))),
    "noise": blob(33, 17, 0.5, seed=3),
    "sparse": blob(64, 48, 0.01, seed=4),
    "long runs": np.pad(np.ones((300, 90), dtype=bool), 60),
}
each_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())


def uncompressed(mask):
    column_major = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(column_major, prepend=False, append=~column_major[-1]))
    return np.diff(edges, prepend=0).tolist()


def track_with_logits(size=(30, 50), frames=3, side=16):
    logits = np.random.default_rng(5).normal(size=(frames, side, side)).astype(np.float32)
    return MaskTrack(size, np.arange(frames), ("",) * frames, logits)


def upscaled(logits, size, side):
    square = torch.nn.functional.interpolate(torch.tensor(logits)[None, None], (side, side), mode="bilinear")
    return torch.nn.functional.interpolate(square, size, mode="bilinear")[0, 0]


@each_mask
def test_a_coded_mask_decodes_to_itself(mask):
    rle = {"size": list(mask.shape), "counts": masks.encode(mask)}
    np.testing.assert_array_equal(coco.decode(rle).astype(bool), mask)


@each_mask
def test_the_code_does_not_depend_on_memory_order(mask):
    assert masks.encode(mask) == masks.encode(np.asfortranarray(mask)) == masks.encode(mask[::-1][::-1])


def test_a_track_gives_back_every_frame():
    dense = np.stack([blob(9, 12, share, seed=6) for share in (0.0, 0.3, 1.0)])
    track = masks.track(dense, np.array([4, 9, 11]))
    assert track.size == (9, 12)
    assert track.index.tolist() == [4, 9, 11]
    assert all(np.array_equal(track.dense(position), dense[position]) for position in range(3))


def test_a_track_may_have_no_frames():
    assert len(masks.track(np.zeros((0, 4, 6), dtype=bool), np.zeros(0, dtype=np.int64))) == 0


@each_mask
def test_the_box_of_a_mask_equals_pycocotools(mask):
    box = masks.box_of(mask)
    left, top, width, height = coco.toBbox(coco.encode(np.asfortranarray(mask, dtype=np.uint8)))
    assert (box is None) == (not mask.any())
    assert box is None or box.tolist() == [left, top, left + width, top + height]


def test_iou_equals_pycocotools_on_masks_that_are_not_empty():
    pairs = [(blob(21, 34, 0.4, seed), blob(21, 34, 0.6, seed + 100)) for seed in range(5)]
    for first, second in pairs:
        codes = [coco.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in (first, second)]
        assert masks.iou(first, second) == pytest.approx(coco.iou(codes[:1], codes[1:], [0])[0, 0])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("empty", "empty", 1.0), ("empty", "full", 0.0), ("full", "empty", 0.0), ("full", "full", 1.0)],
)
def test_iou_of_empty_and_full_masks(first, second, expected):
    assert masks.iou(MASKS[first], MASKS[second]) == expected


def test_the_boundary_of_a_block_is_its_ring():
    block = np.pad(np.ones((4, 5), dtype=bool), 2)
    ring = block.copy()
    ring[3:5, 3:6] = False
    np.testing.assert_array_equal(masks.boundary(block), ring)


def test_the_edge_of_the_frame_closes_an_outline():
    outline = masks.boundary(np.ones((4, 6), dtype=bool))
    assert outline[[0, -1]].all() and outline[:, [0, -1]].all() and not outline[1:-1, 1:-1].any()


def test_a_pixel_is_boundary_if_and_only_if_a_side_touches_the_outside():
    mask = blob(11, 13, 0.7, seed=8)
    outline = masks.boundary(mask)
    for row, column in np.ndindex(mask.shape):
        around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        inside = all(0 <= y < 11 and 0 <= x < 13 and mask[y, x] for y, x in around)
        assert outline[row, column] == (mask[row, column] and not inside)


@each_mask
def test_a_sound_rle_passes_compressed_and_uncompressed(mask):
    size, counts = mask.shape, masks.encode(mask)
    assert masks.validate_rle({"size": list(size), "counts": counts}) == (size, counts)
    assert masks.validate_rle({"size": list(size), "counts": uncompressed(mask), "id": 3}) == (size, counts)


@pytest.mark.parametrize(
    ("rle", "error", "words"),
    [
        (None, DataError, "None"),
        ("abc", DataError, "'abc'"),
        ({"size": [2, 3]}, DataError, "counts"),
        ({"size": [2], "counts": [6]}, DataError, r"\[2\]"),
        ({"size": "23", "counts": [6]}, DataError, "'23'"),
        ({"size": [2, -3], "counts": [6]}, DataError, "-3"),
        ({"size": [0, 3], "counts": []}, DataError, "positive"),
        ({"size": [2.0, 3], "counts": [6]}, DataError, "2.0"),
        ({"size": [True, 6], "counts": [6]}, DataError, "True"),
        ({"size": [30_000, 30_000], "counts": [900_000_000]}, LimitError, "30000 x 30000"),
        ({"size": [10**4000, 1], "counts": []}, LimitError, "over the limit"),
        ({"size": [2, 3], "counts": None}, DataError, "None"),
        ({"size": [2, 3], "counts": [6.0]}, DataError, "6.0"),
        ({"size": [2, 3], "counts": [False, 6]}, DataError, "False"),
        ({"size": [2, 3], "counts": [1, -1, 6]}, DataError, "-1"),
        ({"size": [2, 3], "counts": [5]}, DataError, "cover 5 pixels"),
        ({"size": [2, 3], "counts": [10**4200] * 9}, DataError, "run of 1000"),
        ({"size": [2, 3], "counts": ""}, DataError, "cover 0 pixels"),
        ({"size": [2, 3], "counts": "5"}, DataError, "cover 5 pixels"),
        ({"size": [2, 3], "counts": "6O"}, DataError, "-1"),
        ({"size": [2, 3], "counts": "6\x00"}, DataError, "at 1"),
        ({"size": [2, 3], "counts": "6é"}, DataError, "at 1"),
        ({"size": [2, 3], "counts": "V"}, DataError, "cut short"),
        ({"size": [2, 3], "counts": "o" * 50}, DataError, "at 7"),
    ],
)
def test_a_hostile_rle_is_refused_with_a_reason(rle, error, words):
    with pytest.raises(error, match=words):
        masks.validate_rle(rle)


def test_a_huge_hostile_value_gives_a_short_message():
    with pytest.raises(DataError) as refused:
        masks.validate_rle({"size": [2, 3], "counts": ["x" * 10_000] * 10_000})
    assert len(str(refused.value)) < 300


def test_the_pixel_limit_is_the_caller_s():
    rle = {"size": [4, 5], "counts": [20]}
    assert masks.validate_rle(rle, max_pixels=20)[0] == (4, 5)
    with pytest.raises(LimitError, match="limit of 19"):
        masks.validate_rle(rle, max_pixels=19)


@pytest.mark.parametrize("size", [(1, 1), (37, 64), (90, 40)])
def test_upscale_takes_the_two_bilinear_steps(size):
    logits = np.random.default_rng(9).normal(size=(2, 16, 16)).astype(np.float32)
    result = masks.upscale(torch.tensor(logits), size)
    assert result.shape == (2, *size)
    assert torch.equal(result, torch.stack([upscaled(frame, size, 64) for frame in logits]))


def test_upscale_in_two_steps_differs_from_one_step():
    logits = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    direct = torch.nn.functional.interpolate(logits[None], (20, 30), mode="bilinear")[0]
    assert not torch.equal(masks.upscale(logits, (20, 30)) > 0, direct > 0)


def test_upscale_answers_in_float32_and_for_no_objects():
    assert masks.upscale(torch.zeros(1, 4, 4, dtype=torch.bfloat16), (5, 6)).dtype == torch.float32
    assert masks.upscale(torch.zeros(0, 4, 4), (5, 6)).shape == (0, 5, 6)


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.8])
def test_a_moved_threshold_gives_the_pixels_above_that_probability(threshold):
    track = track_with_logits()
    moved = masks.at_threshold(track, threshold)
    for position, logits in enumerate(track.logits):
        probability = upscaled(logits, (30, 50), 64).double().sigmoid().numpy()
        is_clear = np.abs(probability - threshold) > 1e-6
        np.testing.assert_array_equal(moved.dense(position)[is_clear], (probability > threshold)[is_clear])


@pytest.mark.parametrize(("value", "is_in"), [(0.0, False), (-1e-30, False), (1e-30, True)])
def test_the_threshold_one_half_is_the_logit_zero_exactly(value, is_in):
    track = MaskTrack((2, 2), np.array([0]), ("",), np.full((1, 2, 2), value, np.float32))
    assert (masks.at_threshold(track, 0.5).dense() == is_in).all()


def test_full_logits_are_those_the_masks_are_cut_from():
    track = track_with_logits()
    np.testing.assert_array_equal(masks.full_logits(track, 2) > 0, masks.at_threshold(track, 0.5).dense(2))


def test_a_moved_threshold_keeps_frames_and_logits_so_that_it_can_move_back():
    track = track_with_logits()
    half = masks.at_threshold(track, 0.5)
    there_and_back = masks.at_threshold(masks.at_threshold(half, 0.9), 0.5)
    assert there_and_back.rles == half.rles
    assert there_and_back.index is track.index


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        masks.at_threshold(track_with_logits(), threshold)


def test_a_track_without_logits_cannot_move_its_threshold():
    track = masks.track(np.ones((1, 2, 3), dtype=bool), np.array([0]))
    with pytest.raises(DataError, match="without its logits"):
        masks.at_threshold(track, 0.4)


def test_geometry_loads_no_torch():
    code = "import sys; from segue.geometry import boxes, masks, notation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
