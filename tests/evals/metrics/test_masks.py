"""J and F against the recorded values of the official scorer; shares of pixels by hand."""

import math

import numpy as np
import pytest

from segue.evals.metrics.masks import (
    Overlap,
    agreement,
    cl_dice,
    contour_accuracy,
    dilate,
    hd95,
    outline,
    overlap,
    region_similarity,
)


def block(top: int = 20, left: int = 30, height: int = 40, width: int = 50) -> np.ndarray:
    mask = np.zeros((1, 100, 120), bool)
    mask[:, top : top + height, left : left + width] = True
    return mask


@pytest.mark.parametrize(
    ("shift", "similarity", "accuracy"), [(1, 0.914792, 1.0), (2, 0.838235, 0.983333), (5, 0.649485, 0.055556)]
)
def test_a_shifted_block_scores_as_the_official_scorer_says(shift: int, similarity: float, accuracy: float) -> None:
    moved = block(20 + shift, 30 + shift)
    assert region_similarity(moved, block())[0] == pytest.approx(similarity, abs=1e-6)
    assert contour_accuracy(moved, block())[0] == pytest.approx(accuracy, abs=1e-6)


def test_nothing_agrees_with_nothing_and_with_nothing_else() -> None:
    nothing = np.zeros((1, 100, 120), bool)
    assert (region_similarity(nothing, nothing)[0], contour_accuracy(nothing, nothing)[0]) == (1.0, 1.0)
    assert (region_similarity(nothing, block())[0], contour_accuracy(nothing, block())[0]) == (0.0, 0.0)
    assert contour_accuracy(block(), nothing)[0] == 0.0


def test_the_outline_of_a_small_block_is_the_ring_that_berkeley_draws() -> None:
    mask = np.zeros((1, 6, 6), bool)
    mask[:, 2:4, 2:4] = True
    ring = np.zeros((6, 6), bool)
    ring[1:4, 1:4] = True
    ring[2, 2] = False
    assert (outline(mask)[0] == ring).all()


@pytest.mark.parametrize(("radius", "size"), [(2, 13), (3, 29), (8, 197)])
def test_a_point_grows_to_a_disk(radius: int, size: int) -> None:
    point = np.zeros((1, 41, 41), bool)
    point[0, 20, 20] = True
    assert np.count_nonzero(dilate(point, radius)) == size


def test_a_point_at_the_edge_grows_into_the_frame_only() -> None:
    point = np.zeros((1, 5, 5), bool)
    point[0, 0, 4] = True
    grown = dilate(point, 2)[0]
    assert [row.tolist() for row in np.argwhere(grown)] == [[0, 2], [0, 3], [0, 4], [1, 3], [1, 4], [2, 4]]


def test_frames_are_scored_one_by_one() -> None:
    found, truth = np.concatenate([block(), block(25, 35)]), np.concatenate([block(), block()])
    assert region_similarity(found, truth).tolist() == pytest.approx([1.0, 0.649485], abs=1e-6)


@pytest.mark.parametrize(
    ("counts", "iou", "dice", "precision", "recall"),
    [
        ((6, 8, 12), 6 / 14, 12 / 20, 6 / 8, 6 / 12),
        ((0, 5, 5), 0.0, 0.0, 0.0, 0.0),
        ((0, 0, 0), 1.0, 1.0, 1.0, 1.0),  # nothing found of nothing
        ((0, 5, 0), 0.0, 0.0, 0.0, None),  # something found of nothing
        ((0, 0, 5), 0.0, 0.0, None, 0.0),  # nothing found of something
    ],
)
def test_shares_of_pixels_and_those_of_nothing(
    counts: tuple[int, int, int], iou: float, dice: float, precision: float | None, recall: float | None
) -> None:
    counted = Overlap(*counts)
    assert (counted.iou, counted.dice, counted.precision, counted.recall) == (iou, dice, precision, recall)


def test_pixels_are_counted_and_add_up() -> None:
    counted = overlap(block(25, 35), block())
    assert counted == Overlap(35 * 45, 40 * 50, 40 * 50)
    assert counted + Overlap(1, 2, 3) == Overlap(35 * 45 + 1, 2002, 2003)


def blobs(seed: int, size: tuple[int, int], count: int = 7) -> np.ndarray:
    """Ellipses and noise, some of them at edges, some frames empty."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[: size[0], : size[1]]
    masks = np.zeros((count, *size), bool)
    for mask in masks[:-1]:
        down, across = rows - rng.uniform(0, size[0]), columns - rng.uniform(0, size[1])
        mask |= (down / rng.uniform(1, size[0])) ** 2 + (across / rng.uniform(1, size[1])) ** 2 < 0.2
        mask ^= rng.random(size) < rng.choice([0, 0.02])
    return masks


def plain_accuracy(found: np.ndarray, truth: np.ndarray) -> float:
    """F of one frame as its definition reads, on whole frames and pixel by pixel."""
    radius = math.ceil(0.008 * math.hypot(*found.shape))
    mine, other = (plain_outline(mask) for mask in (found, truth))
    near = [
        [np.hypot(*(points - point).T).min(initial=np.inf) <= radius for point in outline]
        for outline, points in ((mine, other), (other, mine))
    ]
    precision, recall = (np.mean(one) if one else 1.0 for one in near)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def plain_outline(mask: np.ndarray) -> np.ndarray:
    last = (mask.shape[0] - 1, mask.shape[1] - 1)
    steps = ((0, 1), (1, 0), (1, 1))
    return np.array(
        [
            (row, column)
            for row, column in np.ndindex(mask.shape)
            if any(
                mask[row, column] != mask[min(row + down, last[0]), min(column + across, last[1])]
                for down, across in steps
            )
        ]
    ).reshape(-1, 2)


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (40, 48), (33, 64), (17, 96), (61, 100), (20, 49)])
def test_packed_pixels_give_what_the_definition_gives(size: tuple[int, int]) -> None:
    found, truth = blobs(1, size), blobs(2, size)
    similarity, accuracy = agreement(found, truth)
    union = (found | truth).sum(axis=(1, 2))
    shared = (found & truth).sum(axis=(1, 2))
    assert similarity.tolist() == [one / all_ if all_ else 1.0 for one, all_ in zip(shared, union, strict=True)]
    expected = [plain_accuracy(one, other) for one, other in zip(found, truth, strict=True)]
    assert accuracy == pytest.approx(expected, abs=1e-12)
    assert (similarity == region_similarity(found, truth)).all() and (accuracy == contour_accuracy(found, truth)).all()


@pytest.mark.parametrize("radius", [0, 1, 8, 9, 21])
def test_growing_reaches_across_words_and_stops_at_edges(radius: int) -> None:
    masks = blobs(3, (30, 131)) & (np.random.default_rng(0).random((7, 30, 131)) < 0.01)
    points = np.argwhere(masks)
    expected = np.zeros_like(masks)
    rows, columns = np.ogrid[:30, :131]
    for frame, row, column in points:
        expected[frame] |= (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    assert len(points) and (dilate(masks, radius) == expected).all()


def test_no_frames_have_no_scores() -> None:
    none = np.zeros((0, 5, 6), bool)
    assert [len(figure) for figure in agreement(none, none)] == [0, 0]


CROSS = np.zeros((41, 41), bool)
CROSS[18:23, 5:36] = CROSS[5:36, 18:23] = True


@pytest.mark.parametrize(
    ("found", "truth", "expected"),
    [
        (CROSS, CROSS, 1.0),
        (CROSS & False, CROSS & False, 1.0),
        (CROSS & False, CROSS, 0.0),
        (CROSS, CROSS & False, 0.0),
        (~CROSS, CROSS, 0.0),
    ],
)
def test_centre_lines_of_the_same_are_the_same_and_of_nothing_are_none(found, truth, expected) -> None:
    assert cl_dice(found, truth) == expected


def test_a_missing_branch_costs_the_share_of_its_centre_line() -> None:
    bar = CROSS.copy()
    bar[:18] = bar[23:] = False  # only the horizontal bar is found, all of which is true
    from skimage.morphology import skeletonize

    recall = bar[skeletonize(CROSS)].mean()
    assert 0.4 < recall < 0.7 and cl_dice(bar, CROSS) == pytest.approx(2 * recall / (1 + recall))


def test_outlines_are_as_far_apart_as_they_were_moved() -> None:
    assert hd95(block()[0], block()[0]) == 0.0
    assert hd95(block(23, 30)[0], block()[0]) == 3.0
    nothing = np.zeros((100, 120), bool)
    assert (hd95(nothing, nothing), hd95(nothing, block()[0])) == (0.0, math.hypot(100, 120))
