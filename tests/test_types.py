import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest

from segue.errors import DataError
from segue.types import MaskTrack, Media, Message, Region

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
