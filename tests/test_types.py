import inspect
import pickle
from dataclasses import FrozenInstanceError
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import segue
from segue.errors import DataError
from segue.types import Answer, MaskTrack, Media, Message, Region

PHOTO = Media(Path("street.jpg"), "image", (4, 6))
REGION = Region(box=np.array([0.0, 0, 2, 2]))

# COCO counts down the columns, zeros first: 6 pixels out (two columns of 3), 3 in, 9 out; and 18 out
COLUMN_TWO = MaskTrack((3, 6), np.array([7, 9]), ("639", "b0"))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Who?", (PHOTO, REGION, "\nWho?")),
        ("<image>\nWho?", (PHOTO, REGION, "\nWho?")),
        ("<image>Who?", (PHOTO, REGION, "Who?")),
        ("Look: <image> who?", ("Look: ", PHOTO, REGION, " who?")),
        ("<image>", (PHOTO, REGION)),
    ],
)
def test_a_medium_stands_where_the_text_says_and_its_regions_follow_it(text, parts):
    assert Message.user(text, PHOTO, (REGION,)).parts == parts


@pytest.mark.parametrize(("text", "media"), [("<image> <image>", PHOTO), ("<image> who?", None)])
def test_a_place_without_its_medium_is_refused(text, media):
    with pytest.raises(DataError, match="placeholders for"):
        Message.user(text, media)


@pytest.mark.parametrize("media", ["street.jpg", Path("street.jpg"), np.zeros((4, 6, 3), np.uint8)])
def test_a_medium_that_is_not_opened_is_refused_and_not_read_as_words(media):
    user = inspect.unwrap(Message.user.__func__)  # tests check types before it could
    with pytest.raises(DataError, match="is none; open it with segue.open_media"):
        user(Message, "Who?", media)


def test_the_text_of_a_turn_leaves_out_media_and_regions():
    assert Message.user("Look: <image> who?", PHOTO, (REGION,)).text == "Look:  who?"
    assert Message.user("Only words.").parts == ("Only words.",)


def test_a_mask_is_found_by_its_place_in_the_track_not_by_its_frame_number():
    full_column = np.zeros((3, 6), dtype=bool)
    full_column[:, 2] = True
    np.testing.assert_array_equal(COLUMN_TWO.dense(0), full_column)
    assert COLUMN_TWO.rle(0) == {"size": [3, 6], "counts": "639"}
    assert not COLUMN_TWO.dense(1).any()
    assert len(COLUMN_TWO) == 2
    with pytest.raises(IndexError):
        COLUMN_TWO.dense(7)


@pytest.mark.parametrize(
    ("source", "name"),
    [(Path("a/street.jpg"), "street.jpg"), (b"\xff", "<image>"), (np.zeros((4, 6, 3), np.uint8), "<image>")],
)
def test_a_medium_has_a_name_for_people(source, name):
    assert Media(source, "image", (4, 6)).name == name


def test_a_medium_travels_between_processes():
    assert pickle.loads(pickle.dumps(PHOTO)) == PHOTO


def test_values_cannot_be_changed_after_the_fact():
    with pytest.raises(FrozenInstanceError):
        PHOTO.count = 2


def region(**changes):
    fields = {"phrase": "a star", "box": np.array([1.0, 2, 3, 4.25]), "masks": COLUMN_TWO, "score": 0.5}
    return Region(**{**fields, **changes})


def test_values_with_arrays_are_equal_by_content_and_equal_ones_have_one_hash():
    again = region(box=np.array([1.0, 2, 3, 4.25]), masks=MaskTrack((3, 6), np.array([7, 9]), ("639", "b0")))
    assert region() == again and hash(region()) == hash(again) and len({region(), again}) == 1
    assert Answer("x", (region(),)) == Answer("x", (again,))
    assert hash(Answer("x", (region(),), lineage={"a": 1})) == hash(Answer("x", (again,), lineage={"a": 1}))
    pixels = np.zeros((4, 6, 3), np.uint8)
    assert Media(pixels, "image", (4, 6)) == Media(pixels.copy(), "image", (4, 6))


@pytest.mark.parametrize(
    "other",
    [region(box=np.array([1.0, 2, 3, 4.5])), region(box=None), region(masks=None), region(phrase="a leaf"), "a star"],
)
def test_values_that_differ_in_one_part_are_not_equal(other):
    assert region() != other


def test_values_say_in_one_short_line_what_they_are():
    assert repr(PHOTO) == "Media(street.jpg, image, 6x4)"
    assert repr(Media(b"", "video", (4, 6), 10, 12.5)) == "Media(<video>, video, 6x4, 10 frames, 12.5 fps)"
    told = "Region('a star', box=(1.0, 2.0, 3.0, 4.2), score=0.500, MaskTrack(6x3, 2 frames))"
    assert repr(region()) == told
    assert repr(Answer("It is.", (region(),))) == f"Answer('It is.', {told})"
    assert repr(Answer("a" * 200, (REGION,) * 5)).endswith("and 2 regions more)") and "..." in repr(Answer("a" * 200))


def test_a_track_of_masks_is_an_array_where_one_is_wanted():
    masks = np.asarray(COLUMN_TWO)
    assert masks.dtype == bool and masks.shape == (2, 3, 6)
    np.testing.assert_array_equal(masks[0], COLUMN_TWO.dense(0))
    assert np.asarray(COLUMN_TWO, dtype=np.uint8).sum() == 3
    with pytest.raises(ValueError, match="takes a copy"):
        np.array(COLUMN_TWO, copy=False)


def test_the_package_says_its_version():
    assert segue.__version__ == version("segue")
