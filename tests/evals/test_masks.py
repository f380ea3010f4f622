"""J and F against the recorded values of the official scorer; shares of pixels by hand."""

import numpy as np
import pytest

from segue.evals.masks import Overlap, contour_accuracy, dilate, outline, overlap, region_similarity


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
