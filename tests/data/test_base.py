import numpy as np
import pytest
from layouts import SIZE, box_mask

from segue.data import shapes
from segue.data.base import Dataset, Rows, checked, error_context, order_rng, ordered_draw, rng_for, spread_draw
from segue.datasets import DATASETS
from segue.errors import ConfigError, DataError, MediaError
from segue.geometry import masks
from segue.types import Media, Message, Region, Sample

IMAGE = Media(b"", "image", SIZE)
TRACK = shapes.track([masks.encode(box_mask(1, 1, 5, 5))], (0,), SIZE)

FOUND = (Region(masks=TRACK),)


def sample(answer="It is [SEG].", regions=FOUND, frames=(0,), question="Segment it."):
    messages = (Message.user(question, IMAGE), Message("assistant", (answer,)))
    return Sample("a", "segment", messages, regions, frames)


def draws(rng):
    return rng.integers(2**62, size=4).tolist()


def test_chance_depends_on_the_three_numbers_alone():
    numbers = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (5, 2, 3), (5, 3, 2)]
    assert draws(rng_for(5, 2, 3)) == draws(rng_for(5, 2, 3))
    streams = {tuple(draws(rng_for(*place))) for place in numbers}
    assert len(streams | {tuple(draws(order_rng(seed, epoch))) for seed, epoch, _ in numbers[:3]}) == len(numbers) + 3


@pytest.mark.parametrize("place", [(-1, 0, 0), (0, 2**32, 0), (0, 0, -1)])
def test_numbers_that_could_meet_others_are_refused(place):
    with pytest.raises(ConfigError, match="between 0 and"):
        rng_for(*place)


@pytest.mark.parametrize(("available", "wanted"), [(1, 5), (3, 5), (5, 5), (8, 5)])
def test_five_of_eight_are_drawn_without_repeats_and_three_fill_five_evenly(available, wanted):
    for seed in range(50):
        drawn = spread_draw(np.random.default_rng(seed), available, wanted)
        counts = np.bincount(drawn, minlength=available)
        assert len(drawn) == wanted
        assert counts.max() - counts.min() <= 1


def test_every_one_of_eight_comes_equally_often():
    counts = np.bincount([n for seed in range(400) for n in spread_draw(np.random.default_rng(seed), 8, 5)])
    assert counts.min() > 200
    assert counts.max() < 300


@pytest.mark.parametrize(("available", "wanted", "length"), [(9, 5, 5), (5, 5, 5), (3, 5, 3), (9, None, 9)])
def test_frames_are_different_and_ascend(available, wanted, length):
    drawn = ordered_draw(np.random.default_rng(0), available, wanted)
    assert len(drawn) == length
    assert drawn == sorted(set(drawn))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (sample(answer="Here it is."), r"0 \[SEG\] for 1 masks"),
        (sample(answer="[SEG] and [SEG]."), r"2 \[SEG\] for 1 masks"),
        (sample(regions=()), r"1 \[SEG\] for 0 masks"),
        (sample(question="What is [SEG]?"), "question holds"),
        (sample(frames=(1,)), r"masks at frames \[0\], shown are \[1\]"),
        (sample(regions=(Region(box=np.zeros(4)),)), "has no masks"),
        (sample(regions=(Region(masks=shapes.track([shapes.empty((9, 9))], (0,), (9, 9))),)), r"masks of \(9, 9\)"),
        (Sample("a", "chat", (Message.user("Hello?"),)), "end with an answer"),
        (Sample("a", "chat", ()), "end with an answer"),
    ],
)
def test_a_missing_seg_and_parts_that_do_not_fit_are_told(made, message):
    with pytest.raises(DataError, match=message):
        checked(made)


def test_a_fitting_sample_passes_unchanged():
    assert checked(sample()) == sample()


def test_a_row_is_named_in_its_errors_and_keeps_their_kind():
    def make(row, rng):
        raise MediaError("there is no cat.jpg")

    with pytest.raises(MediaError, match="^pets/train row 1: there is no cat.jpg$"):
        Rows("pets/train", ["a", "b"], make).get(1, rng_for(0, 0, 0))
    with pytest.raises(IndexError):
        Rows("pets/train", ["a", "b"], make).get(-1, rng_for(0, 0, 0))
    with pytest.raises(DataError, match="^outer: inner: bad$"), error_context("outer"), error_context("inner"):
        raise DataError("bad")


def test_every_dataset_of_the_table_can_be_loaded_by_name():
    assert set(DATASETS) >= {
        "refcoco",
        "ref_vos",
        "ref_sav",
        "image_chat",
        "video_chat",
        "gcg",
        "region_caption",
        "folder",
    }
    assert all(callable(DATASETS[name]) for name in DATASETS)
    assert isinstance(Rows("x", [], lambda row, rng: row), Dataset)
