import re

import layouts
import numpy as np
import pytest
from layouts import UNION, answers, areas, questions

from segue.data.base import rng_for
from segue.data.refcoco import load
from segue.errors import ConfigError, DataError, MediaError


@pytest.fixture
def root(tmp_path):
    return layouts.refcoco(tmp_path)


def test_a_row_is_an_image_with_five_of_its_referents(root):
    dataset = load(root, "train")
    assert len(dataset) == 2
    sample = dataset.get(0, rng_for(0, 0, 0))
    assert (sample.id, sample.task, sample.frames) == ("COCO_train2014_000000000101.jpg", "segment", (0,))
    assert len(questions(sample)) == len(sample.regions) == 5
    assert all(answer.count("[SEG]") == 1 for answer in answers(sample))
    assert len(sample.messages[0].parts) == 2, "the image stands in the first question alone"


def test_overlapping_polygons_of_a_referent_are_united(root):
    sample = load(root, "train", referents=None).get(0, rng_for(0, 0, 0))
    by_phrase = dict(zip((region.phrase for region in sample.regions), areas(sample), strict=True))
    assert by_phrase["thing 1"] == UNION
    assert by_phrase["thing 0"] == 400


def test_questions_ask_for_the_phrase_and_sentences_are_drawn_anew(root):
    dataset, phrases = load(root, "train"), set()
    for index in range(20):
        sample = dataset.get(0, rng_for(0, 0, index))
        phrases |= {region.phrase for region in sample.regions}
        assert all(
            region.phrase in question for region, question in zip(sample.regions, questions(sample), strict=True)
        )
        drawn = [re.sub(r"\D", "", region.phrase) for region in sample.regions]
        assert set(drawn) == {"0", "1", "2"}, "each comes once before one comes again"
        assert np.unique(drawn, return_counts=True)[1].max() == 2
    assert phrases == {f"{word} {number}" for word in ("thing", "object") for number in range(3)}


def test_the_same_numbers_give_the_same_sample(root):
    dataset = load(root, "train")
    one, two = (dataset.get(0, rng_for(3, 1, 7)) for _ in range(2))
    assert [message.text for message in one.messages] == [message.text for message in two.messages]
    assert [region.masks.rles for region in one.regions] == [region.masks.rles for region in two.regions]
    assert questions(one) != questions(dataset.get(0, rng_for(3, 2, 7)))


@pytest.mark.parametrize(("split", "images"), [("train", 2), ("val", 1), ("testA", 1), ("test", 1)])
def test_splits_are_kept_apart(root, split, images):
    assert len(load(root, split)) == images


def test_pickled_refs_and_their_json_are_the_same_dataset(tmp_path):
    pickled, plain = (load(layouts.refcoco(tmp_path / str(way), pickled=way), "train") for way in (True, False))
    assert pickled.rows == plain.rows


def test_refs_to_one_object_are_one_referent_with_all_their_sentences(tmp_path):
    root = layouts.refcoco(tmp_path, pickled=False)
    home = root / "ref_seg/refcoco"
    refs = load(root, "train").rows
    assert len(refs[0].referents) == 3
    layouts.write_json(
        home / "refs(unc).json",
        [
            {"ann_id": 9000, "image_id": 101, "split": "train", "sentences": [{"raw": word, "sent": word}]}
            for word in ("left", "tall")
        ],
    )
    sample = load(root, "train", referents=None).get(0, rng_for(0, 0, 0))
    assert [region.phrase for region in sample.regions] == ["left", "tall"]


def test_grefcoco_unites_several_objects_and_answers_without_seg_where_nothing_fits(tmp_path):
    root = layouts.refcoco(tmp_path, variant="grefcoco", pickled=False)
    dataset = load(root, "train", variant="grefcoco", referents=None)
    several = dataset.get(0, rng_for(0, 0, 0))
    together = dict(zip((region.phrase for region in several.regions), areas(several), strict=True))["thing 1"]
    assert together > UNION
    nothing = dataset.get(1, rng_for(0, 0, 0))
    assert nothing.regions == ()
    assert len(answers(nothing)) == 2
    assert not any("[SEG]" in answer for answer in answers(nothing))


def test_missing_files_are_all_named(tmp_path):
    with pytest.raises(DataError, match=r"ref_seg/refcoco\+/instances\.json.*refs\(unc\)\.p.*train2014"):
        load(tmp_path, "train", variant="refcoco+")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"split": "vall"}, ConfigError, "no split 'vall'; it has testA, train, val"),
        ({"split": "train", "variant": "refclef"}, ConfigError, "unknown variant of refcoco 'refclef'"),
    ],
)
def test_wrong_names_are_told(root, options, error, message):
    with pytest.raises(error, match=message):
        load(root, **options)


def test_a_missing_or_resized_image_is_a_bad_sample(root):
    image = root / "glamm_data/images/coco2014/train2014/COCO_train2014_000000000101.jpg"
    dataset = load(root, "train")
    image.unlink()
    with pytest.raises(MediaError, match="refcoco/train row 0: there is no COCO_train2014_000000000101.jpg"):
        dataset.get(0, rng_for(0, 0, 0))
    layouts.write_image(image, (20, 30))
    with pytest.raises(DataError, match="is 30x20 pixels, but was annotated at 60x40"):
        dataset.get(0, rng_for(0, 0, 0))


def test_an_annotation_that_is_not_there_is_told(tmp_path):
    root = layouts.refcoco(tmp_path, pickled=False)
    layouts.write_json(root / "ref_seg/refcoco/instances.json", {"images": [], "annotations": []})
    with pytest.raises(DataError, match="image 101 is named, but it is not there"):
        load(root, "train")
