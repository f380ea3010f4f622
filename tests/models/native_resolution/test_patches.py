import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as library_resize

from segue.errors import DataError
from segue.models.native_resolution.patches import double_resize, first_resize, mrope_positions, patchify, smart_resize

LEAST, MOST = 512 * 28 * 28, 2048 * 28 * 28


@pytest.mark.parametrize("unit", [28, 32])
@pytest.mark.parametrize(
    "size", [(1, 1), (14, 14), (42, 70), (150, 300), (633, 634), (97, 211), (4000, 3000), (20, 3999), (3000, 16)]
)
def test_sides_are_those_that_the_library_computes(size, unit):
    found = smart_resize(*size, unit=unit, least=LEAST, most=MOST)
    assert found == library_resize(*size, factor=unit, min_pixels=LEAST, max_pixels=MOST)
    assert all(side % unit == 0 for side in found) and math.prod(found) <= MOST


def test_a_small_image_without_a_lower_limit_keeps_one_unit_per_side():
    assert smart_resize(3, 5, unit=28, least=0, most=MOST) == (28, 28)


@pytest.mark.parametrize("size", [(1, 201), (402, 2)])
def test_an_image_more_than_200_times_as_long_as_wide_is_refused(size):
    with pytest.raises(DataError, match="expected sides of at most 1 to 200"):
        smart_resize(*size, unit=28, least=LEAST, most=MOST)


def test_parity_double_resize_goes_through_multiples_of_28_also_where_the_model_counts_in_32(picture):
    image = picture(150, 300)
    assert first_resize(image).shape == (140, 308, 3)
    assert np.array_equal(
        first_resize(image), np.asarray(Image.fromarray(image).resize((308, 140), Image.Resampling.BICUBIC))
    )
    twice = double_resize(image, unit=32, least=LEAST, most=MOST)
    assert twice.shape == (3, 448, 960) and smart_resize(150, 300, unit=32, least=LEAST, most=MOST) == (448, 896)


def test_an_image_that_fits_already_is_left_as_it_is(picture):
    image = picture(644, 644)
    assert torch.equal(double_resize(image, unit=28, least=LEAST, most=MOST), torch.from_numpy(image).permute(2, 0, 1))


def test_patches_are_those_of_the_librarys_processor_but_for_two_grey_levels(picture):
    image, limits = picture(300, 420), {"shortest_edge": LEAST, "longest_edge": MOST}
    processor = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, size=limits, do_normalize=False)
    theirs = processor(Image.fromarray(first_resize(image)), return_tensors="pt")
    ours = patchify(double_resize(image, unit=28, least=LEAST, most=MOST) / 255, side=14, merge=2)
    assert ours.shape == theirs["pixel_values"].shape
    assert float((ours - theirs["pixel_values"]).abs().max()) <= 2.01 / 255


def test_patches_stand_block_by_block_with_each_colour_twice():
    image = torch.arange(3 * 4 * 8.0).view(3, 4, 8)
    patches = patchify(image, side=1, merge=2)
    assert patches.shape == (32, 6)
    assert patches[:5, 0].tolist() == [0, 1, 8, 9, 2]  # the first block of 2 x 2, then the next to its right
    assert patches[0].tolist() == [0, 0, 32, 32, 64, 64]


@pytest.fixture
def positions_of():
    """Positions of rows of text (".") and visual tokens ("i") with padding ("_"), by image grids and feature rows."""

    def place(rows, grids, features):
        attention = torch.tensor([[int(letter != "_") for letter in row] for row in rows])
        places = torch.tensor([[letter == "i" for letter in row] for row in rows])
        return mrope_positions(attention, places, torch.tensor(features), torch.tensor(grids).view(-1, 2))

    return place


def test_an_images_tokens_share_a_time_and_lie_in_a_grid_from_there(positions_of):
    found = positions_of([".iiiiii.."], [[2, 3]], list(range(6)))
    assert found[:, 0].tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4, 5],
        [0, 1, 1, 1, 2, 2, 2, 4, 5],
        [0, 1, 2, 3, 1, 2, 3, 4, 5],
    ]


def test_images_next_to_each_other_are_told_apart_by_their_features(positions_of):
    found = positions_of(["iiiii."], [[1, 4], [1, 1]], list(range(5)))
    assert found[:, 0].tolist() == [[0, 0, 0, 0, 4, 5], [0, 0, 0, 0, 4, 5], [0, 1, 2, 3, 4, 5]]


def test_rows_that_share_an_image_and_are_padded_each_count_from_their_own_start(positions_of):
    found = positions_of(["__.ii.", ".ii..."], [[2, 1]], [0, 1, 0, 1])
    assert found[:, 0].tolist() == [[0, 0, 0, 1, 1, 3], [0, 0, 0, 1, 2, 3], [0, 0, 0, 1, 1, 3]]
    assert found[:, 1].tolist() == [[0, 1, 1, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 1, 3, 4, 5]]
