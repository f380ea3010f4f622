"""Masks of one's own: pixels counted at many thresholds from one answer."""

import numpy as np
import pytest

from segue import engine
from segue.data.base import rng_for
from segue.errors import DataError
from segue.evals.metrics.own_masks import THRESHOLDS, best_threshold, reduce, score
from segue.evals.run.answer_store import from_json, to_json
from segue.geometry.masks import at_threshold, track
from segue.own_data.folder import questions
from segue.types import MaskTrack, Media, Message, Region, Sample

SIZE = (16, 16)
LEFT = np.zeros((1, *SIZE), bool)
LEFT[:, :, :8] = True


def sample(truth=LEFT):
    """An image on which `truth` is marked as "it"."""
    media = Media(np.zeros((*SIZE, 3), np.uint8), "image", SIZE)
    regions = (Region("it", masks=track(truth, np.zeros(1, int))),) if truth is not None else ()
    return Sample("a", "segment", (Message.user("it", media), Message("assistant", ())), regions, (0,))


def answer(place=None, logit=20.0):
    """An answer that is so sure of these columns, and sure that nothing is elsewhere; or one without a mask."""
    if place is None:
        return engine.Answer("Sure.")
    logits = np.full((1, *SIZE), -20.0, np.float32)
    logits[:, :, place] = logit
    found = at_threshold(MaskTrack(SIZE, np.zeros(1, int), ("",), logits), 0.5)
    return engine.Answer("Sure.", (Region("left half", masks=found),))


def test_a_threshold_moves_the_mask_without_asking_again():
    row = score(sample(), answer(slice(0, 8), -1.0))  # probability 0.27
    assert (row["dice"], row["found"]) == (0.0, 0)
    assert row["scan"]["0.1"]["shared"] > 100
    figures = reduce([row])
    assert figures["dice@0.1"] > 0.9 > figures["dice@0.5"] == 0.0


@pytest.mark.parametrize("regions", [(), (Region("left half", box=np.array([0.0, 0.0, 8.0, 16.0])),)])
def test_an_answer_without_a_mask_is_an_empty_mask_and_told_apart(regions):
    row = score(sample(), engine.Answer("Sure.", regions))
    assert not row["is_emitted"] and (row["shared"], row["found"], row["truth"]) == (0, 0, 128)
    figures = reduce([row])
    assert figures["emitted"] == figures["dice"] == figures["recall"] == 0.0 and "precision" not in figures


@pytest.mark.parametrize(
    ("truth", "place", "dice", "precision", "recall"),
    [(None, None, 1.0, 1.0, 1.0), (None, slice(0, 8), 0.0, 0.0, None), (LEFT, slice(0, 8), 1.0, 1.0, 1.0)],
)
def test_what_is_not_there_is_right_if_nothing_is_found(truth, place, dice, precision, recall):
    row = score(sample(truth), answer(place))
    assert (row["dice"], row["precision"], row["recall"]) == (dice, precision, recall)


def test_a_stored_answer_has_the_score_of_the_one_that_was_given():
    given = answer(slice(2, 8), -1.0)
    stored = from_json(to_json(given, THRESHOLDS))
    assert score(sample(), stored) == score(sample(), given)
    with pytest.raises(DataError, match=r"no masks were stored at threshold 0\.33"):
        stored.at_threshold(0.33)
    with pytest.raises(DataError, match="does not have its form"):
        from_json({"text": "a"})


def test_means_leave_out_what_is_a_share_of_nothing_and_pools_count_pixels():
    rows = [score(sample(), answer(slice(0, 8))), score(sample(), answer())]
    figures = reduce(rows)
    assert (figures["precision"], figures["recall"], figures["dice"]) == (1.0, 0.5, 0.5)
    assert figures["pooled dice"] == pytest.approx(2 / 3) and reduce(rows[::-1]) == figures
    with pytest.raises(DataError, match="no rows"):
        reduce([])


def test_the_best_threshold_is_that_of_the_highest_mean_and_nearest_to_a_half():
    assert best_threshold({"dice": 0.9, "dice@0.3": 0.5, "dice@0.6": 0.5, "iou@0.9": 0.8}) == 0.6
    assert best_threshold({"dice@0.3": 0.6, "dice@0.5": 0.5}) == 0.3
    assert best_threshold({"dice@0.3": 0.6, "iou@0.4": 0.5}, by="iou") == 0.4
    with pytest.raises(DataError, match="no dice by threshold"):
        best_threshold({"accuracy": 1.0})


def test_each_phrase_of_an_image_is_a_question_of_its_own(tmp_path, picture):
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.fromarray(picture(16, 16)).save(tmp_path / "images" / "0.png")
    square = [[2, 2, 8, 2, 8, 8, 2, 8]]
    (tmp_path / "annotations.json").write_text(
        f'[{{"image": "0.png", "text": ["a cat", "A dog."], "mask": [{square}, {square}]}},'
        ' {"image": "0.png", "text": ["a bird"], "mask": [], "negative": true}]'
    )
    rows = questions(tmp_path, "all")
    asked = [rows.get(number, rng_for(0, 0, number)) for number in range(len(rows))]
    assert [one.messages[0].text.strip() for one in asked] == [
        f"Please segment {name} in this image." for name in ("a cat", "a dog", "a bird")
    ]
    assert [len(one.regions) for one in asked] == [1, 1, 0]
    assert len({one.id for one in asked}) == 3 and len({rows.medium_of(number) for number in range(3)}) == 1
