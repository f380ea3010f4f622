import numpy as np
import pytest
from PIL import Image

from segue.errors import ConfigError
from segue.geometry.masks import iou
from segue.synth.vessels import vessels


def test_vessels_follow_from_split_seed_and_index_alone():
    first, again = (vessels(1, 6, split="test") for _ in range(2))
    assert np.array_equal(first.pixels, again.pixels) and np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.pixels, vessels(1, 6, split="train", size=first.mask.shape).pixels)


def test_a_patient_has_four_images_of_one_tree_that_differ():
    same = [vessels(0, index) for index in range(4)]
    assert len({one.group for one in same}) == 1 and vessels(0, 4).group != same[0].group
    assert len({one.pixels.tobytes() for one in same}) == 4 and len({one.mask.shape for one in same}) == 1


@pytest.mark.parametrize("index", [0, 4, 8, 12])
def test_vessels_are_thin_and_told_from_the_tissue_about_them(index):
    one = vessels(0, index)
    assert min(one.mask.shape) >= 192 and max(one.mask.shape) <= 320 and 0.01 < one.mask.mean() < 0.12
    # eroded from both sides by two pixels and two more, a curve of six pixels is all but gone
    core = one.mask.copy()
    for axis, step in ((0, 3), (0, -3), (1, 3), (1, -3)):
        core &= np.roll(one.mask, step, axis)
    assert core.sum() < 0.1 * one.mask.sum()
    near = np.asarray(Image.fromarray(one.mask).convert("L").resize((40, 40)).resize(one.mask.shape[::-1])) > 0
    inside, outside = one.pixels[one.mask].mean(), one.pixels[near & ~one.mask].mean()
    assert abs(inside - outside) > 12
    guess = one.pixels[..., 0] < 0.85 * outside if inside < outside else one.pixels[..., 0] > 1.15 * outside
    assert iou(guess, one.mask) < 0.75, "a threshold alone must not do"


@pytest.mark.parametrize("asked", [{"seed": -1, "index": 0}, {"seed": 0, "index": 0, "size": (10, 10)}])
def test_what_cannot_be_drawn_is_refused(asked):
    with pytest.raises(ConfigError):
        vessels(**asked)
