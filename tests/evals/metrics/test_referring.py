"""IoU over queries, by hand: both empty, silent, several masks, phrases that mean nothing, pixels that do not count."""

import numpy as np
import pytest

from segue.errors import DataError
from segue.evals.metrics import referring
from segue.geometry.masks import encode, track
from segue.types import Answer, Media, Message, Region, Sample

SIZE = (10, 12)


def mask(columns: int, start: int = 0) -> np.ndarray:
    made = np.zeros(SIZE, bool)
    made[:, start : start + columns] = True
    return made


def region(one: np.ndarray) -> Region:
    return Region(masks=track(one[None], np.zeros(1, np.int64)))


def asked(truth: np.ndarray | None, **target) -> Sample:
    media = Media(np.zeros((*SIZE, 3), np.uint8), "image", SIZE)
    regions = () if truth is None else (region(truth),)
    messages = (Message.user("it", media), Message("assistant", ("[SEG]",) * len(regions)))
    return Sample("a", "segment", messages, regions, (0,), target=target)


def found(*masks: np.ndarray) -> Answer:
    return Answer("", tuple(map(region, masks)))


def test_iou_of_three_queries_together_and_on_average():
    scored = [
        referring.score(asked(mask(4)), found(mask(2))),  # 20 of 40
        referring.score(asked(mask(6)), Answer("There is none.")),  # 0 of 60
        referring.score(asked(mask(3)), found(mask(1), mask(1, 1), mask(1, 2))),  # united: 30 of 30
    ]
    figures = referring.reduce(scored)
    assert figures["cIoU"] == pytest.approx(100 * 50 / 130)
    assert figures["gIoU"] == pytest.approx(100 * (0.5 + 0 + 1) / 3)
    assert figures["unparsed"] == pytest.approx(100 / 3)


def test_silence_left_out_and_further_masks_too_where_upstream_did_so():
    scored = [
        referring.score_first(asked(mask(4)), found(mask(2), mask(2, 2))),
        referring.score_first(asked(mask(6)), Answer("There is none.")),
    ]
    figures = referring.reduce_answered(scored)
    assert (figures["cIoU"], figures["gIoU"]) == (50, 25)
    assert referring.reduce_answered(scored[1:])["cIoU"] == 0


def test_what_means_nothing_and_what_does_are_counted_apart():
    scored = [
        referring.score_general(asked(None), Answer("no")),  # right
        referring.score_general(asked(None), found(mask(0))),  # an empty mask is right too
        referring.score_general(asked(None), found(mask(2))),  # 20 pixels of nothing
        referring.score_general(asked(mask(4)), found(mask(4))),
        referring.score_general(asked(mask(4)), Answer("no")),
    ]
    figures = referring.reduce_general(scored)
    assert figures["N-acc"] == pytest.approx(100 * 2 / 3) and figures["T-acc"] == 50
    assert figures["gIoU"] == pytest.approx(100 * (1 + 1 + 0 + 1 + 0) / 5)
    assert figures["cIoU"] == pytest.approx(100 * 40 / (20 + 40 + 40)), "found of nothing counts in the union"
    assert set(referring.reduce_general(scored[3:])) == {"cIoU", "gIoU", "T-acc"}


def test_ignored_pixels_count_neither_as_found_nor_as_missed():
    sample = asked(mask(4), ignored=encode(mask(3, 3)))
    assert referring.score(sample, found(mask(6)))["shared"] == 30
    assert referring.reduce([referring.score(sample, found(mask(6)))])["gIoU"] == 100


def test_no_rows_are_an_error():
    with pytest.raises(DataError, match="no rows"):
        referring.reduce([])
