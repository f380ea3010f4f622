import numpy as np
import pytest
from pycocotools import mask as coco

from segue.geometry import polygons


def mask_of(*rows: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in rows])


def disc(side: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:side, :side] + 0.5 - side / 2
    return x**2 + y**2 < radius**2


def drawn(found, size):
    return coco.decode(coco.merge(coco.frPyObjects([one.ravel().tolist() for one in found], *size))).astype(bool)


BOX = mask_of("....", ".##.", ".##.")
RING = mask_of(".....", ".###.", ".#.#.", ".###.")
TOUCHING = mask_of("##..", "##..", "..##", "..##")
PINCHED = mask_of(".......", ".#####.", ".#.###.", ".##.##.", ".#####.")


@pytest.mark.parametrize(
    ("mask", "areas"),
    [(BOX, [4]), (RING, [9, -1]), (TOUCHING, [4, 4]), (PINCHED, [20, -2]), (np.zeros((3, 3), bool), [])],
)
def test_borders_enclose_parts_clockwise_and_holes_the_other_way(mask, areas):
    assert [polygons.signed_area(line) for line in polygons.borders(mask)] == areas


def test_a_border_has_its_corners_alone():
    (line,) = polygons.borders(BOX)
    assert line.tolist() == [[1, 1], [3, 1], [3, 3], [1, 3]]


@pytest.mark.parametrize("seed", range(8))
def test_borders_of_any_mask_add_up_to_its_area_and_leave_nothing(seed):
    mask = np.random.default_rng(seed).random((13, 17)) < 0.5
    assert sum(map(polygons.signed_area, polygons.borders(mask))) == mask.sum()


def test_polygons_fill_holes_and_one_polygon_does_not():
    ring = disc(80, 30) & ~disc(80, 12)
    assert polygons.area_error(polygons.polygons(ring), ring) == pytest.approx(disc(80, 12).sum() / ring.sum(), rel=0.1)
    assert polygons.area_error([polygons.one_polygon(ring)], ring) < 0.02


def test_parts_are_polygons_of_their_own_or_hang_together():
    two = np.zeros((60, 90), bool)
    two[5:25, 5:45], two[40:50, 60:80] = True, True
    assert [len(one) for one in polygons.polygons(two)] == [4, 4]
    assert (drawn([polygons.one_polygon(two)], two.shape) == two).all()


@pytest.mark.parametrize(("mask", "areas"), [(TOUCHING, [4, 4]), (RING, [8]), (PINCHED, [18])])
def test_parts_hang_together_by_sides(mask, areas):
    assert [part.sum() for part in polygons.parts(mask)] == areas


def test_a_part_in_the_hole_of_another_is_its_own():
    ring, speck = disc(80, 30) & ~disc(80, 12), disc(80, 5)
    assert all((part == one).all() for part, one in zip(polygons.parts(ring | speck), (speck, ring), strict=True))


def test_a_disc_takes_few_corners_and_loses_little():
    mask = disc(200, 80)
    (found,) = polygons.polygons(mask)
    assert len(found) < 50 and polygons.area_error([found], mask) < 0.005


@pytest.mark.parametrize("mask", [mask_of("#"), mask_of(".#.", "..."), mask_of("###")])
def test_the_smallest_masks_are_polygons_too(mask):
    (found,) = polygons.polygons(mask)
    assert polygons.area_error([found], mask) == 0
