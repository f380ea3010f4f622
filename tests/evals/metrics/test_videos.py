"""Scores of video segmentation: robustness, groups, and DAVIS's own figures."""

import json

import numpy as np
import pytest

from segue.evals.metrics import videos
from segue.evals.metrics.masks import agreement
from segue.geometry.masks import encode, track
from segue.types import Answer, Media, Message, Region, Sample

SIZE = (100, 120)
BOX = (slice(20, 60), slice(30, 80))


def box(down=0, across=0, frames=1):
    masks = np.zeros((frames, *SIZE), bool)
    masks[:, 20 + down : 60 + down, 30 + across : 80 + across] = True
    return masks


NOTHING = np.zeros((1, *SIZE), bool)


def asked(truth, **target):
    media = Media(np.zeros((len(truth), *SIZE, 3), np.uint8), "video", SIZE, len(truth))
    numbers = np.arange(len(truth))
    regions = (Region(masks=track(truth, numbers)),) if truth.any() else ()
    messages = (Message.user("it", media), Message("assistant", ("[SEG]",) if regions else ()))
    return Sample("a", "segment", messages, regions, tuple(range(len(truth))), target=target)


def found(*masks):
    return Answer("", tuple(Region(masks=track(one, np.arange(len(one)))) for one in masks))


@pytest.mark.parametrize(
    ("truth", "answer", "foreground", "robustness"),
    [
        (box(), box(5, 5), box(), 78.75),  # the recorded example
        (NOTHING, box(), box(), 0.0),
        (NOTHING, NOTHING, box(), 100.0),
        (box(), box(), box(), 100.0),
    ],
)
def test_robustness_is_how_little_of_the_rest_of_the_foreground_was_found(truth, answer, foreground, robustness):
    sample = asked(truth, foreground=[encode(mask) for mask in foreground], type_id=0)
    assert videos.score_revos(sample, found(answer))["R"] == pytest.approx(robustness, abs=1e-2)


def test_values_of_an_expression_are_kept_with_two_decimals():
    sample = asked(box(), foreground=[encode(box()[0])], type_id=0)
    row = videos.score_revos(sample, found(box(5, 5)))
    assert (row["J"], row["F"]) == (64.95, 5.56)


def test_only_the_first_mask_of_an_answer_counts():
    assert videos.score(asked(box()), found(box(), NOTHING + True))["J"] == 100
    assert videos.score(asked(box()), found(NOTHING, box()))["J"] == 0


def rows(*kinds_and_values):
    return [{"J": value, "F": value / 2, "kind": kind, "unparsed": False} for kind, value in kinds_and_values]


def test_all_is_the_plain_mean_of_long_and_short():
    figures = videos.reduce_kinds(long=0, short=1)(rows((0, 80), (0, 60), (0, 70), (1, 20)))
    assert figures["J/long"] == 70 and figures["J/short"] == 20 and figures["J"] == 45
    assert figures["J&F"] == pytest.approx((45 + 22.5) / 2)


def test_phrases_that_mean_nothing_have_a_figure_of_their_own():
    some = [
        {"J": value, "F": value, "A": 90.0, "R": 50.0, "kind": kind, "is_empty": is_empty}
        for kind, value, is_empty in ((0, 60, False), (1, 20, False), (1, 40, False), (2, 100, True), (2, 0, False))
    ]
    figures = videos.reduce_revos(some)
    assert (figures["J&F/referring"], figures["J&F/reasoning"], figures["J&F"]) == (60, 30, 45)
    assert (figures["no-target accuracy"], figures["A"], figures["R/reasoning"]) == (50, 90, 50)


def objects(found_and_truth, *, void=None, annotator=0, video="v"):
    """Rows of the objects of one video as one annotator describes them."""
    made = []
    for number, (mine, truth) in enumerate(found_and_truth, start=1):
        hidden = [] if void is None else [encode(mask) for mask in void]
        sample = asked(truth, video=video, object=number, annotator=annotator, void=hidden)
        made.append(videos.score_objects(sample, found(mine) if mine is not None else Answer("")))
    return json.loads(json.dumps(made))


def test_unsupervised_objects_are_paired_where_they_fit_best_and_supervised_ones_as_asked():
    one, other = box(frames=4), box(40, 40, frames=4)
    figures = videos.reduce_objects(objects([(other, one), (one, other)]))
    assert (figures["J"], figures["semi-supervised J"]) == (100, 0)


def test_the_first_and_last_frame_count_in_the_unsupervised_task_alone():
    late = box(frames=4)
    late[[0, 3]] = False
    figures = videos.reduce_objects(objects([(late, box(frames=4))]))
    assert (figures["J"], figures["semi-supervised J"]) == (50, 100)


def test_where_found_objects_overlap_the_lower_number_has_the_pixel():
    one, other = box(frames=3), box(frames=3)
    other[:, :40] = False
    figures = videos.reduce_objects(objects([(one, one & ~other), (other, other)]))
    assert figures["semi-supervised J"] == pytest.approx((50 + 0) / 2), "all of the second one is the first one's"


def test_void_pixels_do_not_count():
    void = np.zeros((3, *SIZE), bool)
    void[:, :, 70:] = True
    moved = box(across=0, frames=3)
    moved[:, :, 70:] = False
    figures = videos.reduce_objects(objects([(moved, box(frames=3))], void=void))
    assert figures["J&F"] == 100


def test_figures_are_means_over_objects_and_then_over_annotators():
    right, wrong = box(frames=3), box(frames=3) & False
    one = objects([(right, right)], video="a") + objects([(wrong, right)], video="b")
    two = objects([(right, right)], video="a", annotator=1)
    assert videos.reduce_objects(one + two)["J"] == pytest.approx((50 + 100) / 2)
    assert videos.reduce_objects((one + two)[::-1]) == videos.reduce_objects(one + two)


def test_pairs_are_judged_as_single_masks_are():
    figures = videos.reduce_objects(objects([(box(2, 2), box())]))
    similarity, accuracy = agreement(box(2, 2), box())
    assert (figures["J"], figures["F"]) == (pytest.approx(100 * similarity[0]), pytest.approx(100 * accuracy[0]))


def test_a_video_that_is_drawn_twice_counts_twice():
    right, wrong = box(frames=3), box(frames=3) & False
    one, other = (
        [{**row, "group": name} for row in objects([pair], video=name)]
        for name, pair in (("a", (right, right)), ("b", (wrong, right)))
    )
    again = [{**row, "group": "a#1"} for row in one]
    assert videos.reduce_objects(one + other + again)["J"] == pytest.approx(100 * 2 / 3)
