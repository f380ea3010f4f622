"""Generated scenes as a dataset, and the dialogues about them."""

import re

import numpy as np
import pytest

from segue.data.base import rng_for
from segue.datasets import DATASETS
from segue.errors import ConfigError, DataError
from segue.geometry.notation import parse_boxes
from segue.synth import clip, scene
from segue.synth.dialogues import box_sample, mixed_sample, regions_sample
from segue.types import Media, Region

DRAWN = {"longest": 128, "most": 4}
ATTRIBUTES = re.compile(r"(small|medium|large)\S* (plain|striped|dotted|checked) \w+ \w+")


def rows(root, kind="stills", split="train", **options):
    return DATASETS["scenes"](root, split, kind=kind, count=4, **DRAWN, **options)


def answers(sample):
    return [message.text for message in sample.messages if message.role == "assistant"]


@pytest.mark.parametrize("kind", ["stills", "clips"])
def test_a_row_is_a_dialogue_with_a_region_for_every_seg_in_order(tmp_path, kind):
    dataset = rows(tmp_path, kind, **({"frames": 4} if kind == "clips" else {}))
    assert len(dataset) == 4
    for row in range(4):
        sample = dataset.get(row, rng_for(0, 0, row))
        assert sum(text.count("[SEG]") for text in answers(sample)) == len(sample.regions)
        assert [message.role for message in sample.messages] == ["user", "assistant"] * (len(sample.messages) // 2)
        for region in sample.regions:
            assert len(region.masks) == len(sample.frames) and max(region.masks.dense(0).shape) == 128
            assert ATTRIBUTES.fullmatch(region.phrase), region.phrase


def test_regions_stand_where_the_scene_has_those_things(tmp_path):
    """The mask of a region is that of the thing whose attributes are its phrase."""
    for row in range(4):
        drawn = scene(0, row, split="train", size=(96, 96), things=(2, 4))
        sample = mixed_sample(drawn, rng_for(0, 0, row), turns=8)
        for region in sample.regions:
            masks = [
                drawn.visible[number, 0]
                for number, one in enumerate(drawn.things)
                if f"{one.size} {one.texture} {one.colour} {one.kind}" == region.phrase
            ]
            assert any(np.array_equal(mask, region.masks.dense(0)) for mask in masks)


def test_the_same_numbers_give_the_same_sample_and_splits_have_other_scenes(tmp_path):
    one, again = (rows(tmp_path).get(1, rng_for(3, 0, 1)) for _ in range(2))
    assert (one.id, answers(one)) == (again.id, answers(again))
    assert one.group != rows(tmp_path, split="test").get(1, rng_for(3, 0, 1)).group


def test_a_dialogue_has_as_many_turns_as_were_asked_for(tmp_path):
    drawn = scene(0, 2, split="train", size=(96, 96), things=(3, 4))
    for turns in (1, 4, 8):
        sample = mixed_sample(drawn, rng_for(0, 0, 2), turns=turns)
        assert len(sample.messages) == 2 * turns
        assert all(isinstance(part, str) for message in sample.messages[1:] for part in message.parts)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_boxes_in_words_are_the_true_ones_to_a_thousandth(language):
    checked = 0
    for index in range(6):
        drawn = scene(0, index, split="train", things=(2, 4))
        for number, phrase in enumerate(drawn.phrases):
            if len(phrase.objects) != 1:
                continue
            sample = box_sample(drawn, number, rng_for(0, 0, number), language=language)
            (found,) = parse_boxes(answers(sample)[0], drawn.size)
            height, width = drawn.size
            limit = np.array([width, height, width, height]) / 2000 + 1e-9
            assert (abs(found.box - drawn.boxes[phrase.objects[0], 0]) <= limit).all()
            assert phrase.words[language] in sample.messages[0].text and sample.regions == ()
            checked += 1
    assert checked > 20


def test_scenes_keep_their_shape_when_they_are_drawn_small_and_small_ones_their_size(tmp_path):
    def sizes(**options):
        dataset = DATASETS["scenes"](tmp_path, "train", count=12, turns=1, **options)
        found = (dataset.get(row, rng_for(0, 0, row)).messages[0].parts for row in range(12))
        return [next(part.size for part in parts if isinstance(part, Media)) for parts in found]

    small, smaller = sizes(longest=200), sizes(longest=128)
    assert max(map(max, small)) == 200 and {max(size) for size in smaller} == {128}
    assert len({max(size) for size in small}) > 1
    for (height, width), (low, narrow) in zip(small, smaller, strict=True):
        assert abs(height / width - low / narrow) < 0.03


def test_marked_regions_are_asked_about_by_their_numbers_and_answered_without_masks():
    drawn = scene(0, 3, split="train", size=(96, 96), things=(3, 4))
    sample = regions_sample(drawn, rng_for(0, 0, 0))
    marked = [part for part in sample.messages[0].parts if isinstance(part, Region)]
    assert (sample.task, sample.regions, len(marked)) == ("region", (), len(drawn.things))
    asked = [re.search(r"region(\d+)", message.text)[1] for message in sample.messages[::2]]
    assert sorted(asked) == [str(number + 1) for number in range(len(marked))]
    for number, answer in zip(asked, answers(sample), strict=True):
        mask = marked[int(number) - 1].masks.dense(0)
        (thing,) = [n for n in range(len(drawn.things)) if np.array_equal(drawn.visible[n, 0], mask)]
        assert drawn.things[thing].colour in answer.lower()


def test_clips_have_neither_boxes_nor_marked_regions():
    drawn = clip(0, 0, split="train", size=(96, 96), frames=4, things=(2, 3))
    with pytest.raises(DataError, match="so it has no box"):
        box_sample(drawn, 0, rng_for(0, 0, 0))
    with pytest.raises(DataError, match="regions are marked in stills only"):
        regions_sample(drawn, rng_for(0, 0, 0))
    sample = mixed_sample(drawn, rng_for(0, 0, 0), turns=6)
    assert not any("<box>" in text for text in answers(sample))


@pytest.mark.parametrize(
    ("split", "options", "text"),
    [
        ("dev", {}, "no split 'dev'; expected train, validation or test"),
        ("train", {"colour": 1}, "no option colour"),
        ("train", {"longest": 100}, "cannot be drawn 100 pixels long"),
    ],
)
def test_what_scenes_do_not_have_is_refused(tmp_path, split, options, text):
    with pytest.raises(ConfigError, match=text):
        DATASETS["scenes"](tmp_path, split, **options)
