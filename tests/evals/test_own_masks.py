import math

import numpy as np
import pytest
from PIL import Image

import segue
from segue.data import DATASETS
from segue.engine import Answer
from segue.errors import DataError
from segue.evals.masks import Overlap
from segue.evals.own_masks import Asked, Score, ask, best_threshold, means, pooled, scan, scores
from segue.geometry.masks import at_threshold, track
from segue.types import MaskTrack, Media, Message, Region, Sample

SIZE = (16, 16)
LEFT = np.zeros((1, *SIZE), bool)
LEFT[:, :, :8] = True


def answered(logits: np.ndarray | None, truth: np.ndarray = LEFT) -> Asked:
    """An image on which `truth` is marked as "it", and an answer with these logits, or with no mask at all."""
    media = Media(np.zeros((*SIZE, 3), np.uint8), "image", SIZE)
    sample = Sample("a", "segment", (Message.user("it", media),), (Region("it", masks=track(truth, np.zeros(1, int))),))
    sample = Sample(sample.id, "segment", sample.messages, sample.regions, (0,), group="patient 1")
    if logits is None:
        return Asked(0, sample, {"it": Answer("Sure.")})
    found = at_threshold(MaskTrack(SIZE, np.zeros(1, int), ("",), logits[None].astype(np.float32)), 0.5)
    return Asked(0, sample, {"it": Answer("Sure.", (Region("left half", masks=found),))})


def sure(place: slice, logit: float) -> np.ndarray:
    """Logits in cells as large as pixels: so sure in these columns, and sure that nothing is elsewhere."""
    logits = np.full(SIZE, -20.0)
    logits[:, place] = logit
    return logits


def test_a_threshold_moves_the_mask_without_asking_again():
    doubtful = answered(sure(slice(0, 8), -1.0))  # probability 0.27
    assert scores([doubtful])[0].overlap.found == 0
    assert scores([doubtful], threshold=0.1)[0].overlap.dice > 0.9


def test_what_is_found_is_what_was_asked_for_whatever_the_model_calls_it():
    score = scores([answered(sure(slice(0, 8), 20.0))])[0]
    assert (score.phrase, score.group, score.is_emitted, score.overlap.dice) == ("it", "patient 1", True, 1.0)


def test_an_answer_without_a_mask_is_an_empty_mask_and_told_apart():
    score = scores([answered(None)])[0]
    assert not score.is_emitted and score.overlap == Overlap(0, 0, 128)
    assert means([score])["emitted"] == 0.0


def test_the_best_threshold_is_that_of_the_highest_mean_and_nearest_to_a_half():
    scanned = scan([answered(sure(slice(0, 8), -1.0))], thresholds=(0.1, 0.2, 0.5, 0.9))
    assert scanned[0.1]["dice"] > scanned[0.2]["dice"] > scanned[0.5]["dice"]
    assert best_threshold(scanned) == 0.1
    assert best_threshold({0.3: {"dice": 0.5}, 0.6: {"dice": 0.5}}) == 0.6
    assert best_threshold({0.3: {"dice": 0.5, "iou": 0.1}, 0.6: {"dice": 0.4, "iou": 0.2}}, by="iou") == 0.6


def test_means_leave_out_what_is_a_share_of_nothing_and_pools_count_pixels():
    several = [Score(0, "", "it", Overlap(5, 5, 10), True), Score(1, "", "it", Overlap(0, 0, 10), True)]
    figures = means(several)
    assert (figures["precision"], figures["recall"]) == (1.0, 0.25)
    assert pooled(several) == Overlap(5, 5, 20)
    assert math.isnan(means(several[1:])["precision"])


def test_a_model_is_asked_for_all_that_is_marked(tmp_path, official_folder):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.repeat(LEFT[0][..., None] * np.uint8(255), 3, -1)).save(tmp_path / name / "0.png")
    told = []
    dataset = DATASETS["folder"](tmp_path, "all", phrase="the left half")
    answers = ask(segue.load(official_folder), dataset, asked=lambda: told.append(1))
    assert len(told) == 1 and list(answers[0].answers) == ["the left half"]
    assert scores(answers)[0].is_emitted and answers[0].truth("the left half").sum() == 128


def test_data_without_a_mask_are_refused(tmp_path, official_folder):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "0.png")
    text = '[{"image": "0.png", "text": ["a dog"], "mask": [], "negative": true}]'
    (tmp_path / "annotations.json").write_text(text)
    with pytest.raises(DataError, match="none of the 1 rows"):
        ask(segue.load(official_folder), DATASETS["folder"](tmp_path, "all"))
