"""My folder: what is told from it, splits, and the forms of COCO and Sa2VA's fine-tuning."""

import logging

import layouts
import numpy as np
import pytest
from layouts import OVERLAPPING, SQUARE, UNION, answers, areas, box_mask, rle

from segue.data.base import rng_for
from segue.errors import ConfigError, DataError, MediaError
from segue.own_data.folder import load, survey

BOX = rle(box_mask(2, 3, 10, 10))


def get(dataset, row=0, index=0):
    return dataset.get(row, rng_for(0, 0, index))


def by_phrase(sample):
    return dict(zip((region.phrase for region in sample.regions), areas(sample), strict=True))


@pytest.fixture
def finetune(tmp_path):
    """Writes `annotations.json`; items need only say what is special."""

    def write(*items):
        whole = [{"image": "1.jpg", "mask": [[SQUARE]], "text": ["vessel"], **item} for item in items]
        layouts.write_json(tmp_path / "annotations.json", whole)
        for item in whole:
            layouts.write_image(tmp_path / "images" / item["image"])
        return load(tmp_path, "all")

    return write


def coco(*annotations, names=("1.jpg",)):
    images = [{"id": number, "file_name": name, "height": 40, "width": 60} for number, name in enumerate(names)]
    whole = [
        {"id": n, "image_id": 0, "category_id": 1, "segmentation": [SQUARE], **a} for n, a in enumerate(annotations)
    ]
    return {
        "images": images,
        "annotations": whole,
        "categories": [{"id": 1, "name": "Vessel"}, {"id": 2, "name": "Cup"}],
    }


# --- annotations.json


def test_every_object_of_an_item_is_asked_for_once(finetune):
    sample = get(finetune({"mask": [OVERLAPPING, [SQUARE]], "text": ["Left vessel.", "branch"]}))
    assert by_phrase(sample) == {"left vessel": UNION, "branch": 400}
    assert [answer.count("[SEG]") for answer in answers(sample)] == [1, 1]
    assert (sample.id, sample.group, sample.frames) == ("1.jpg", "1.jpg", (0,))


def test_the_order_of_objects_is_left_to_chance_and_repeats(finetune):
    dataset = finetune({"mask": [[SQUARE]] * 3, "text": ["a", "b", "c"]})
    orders = [tuple(region.phrase for region in get(dataset, index=index).regions) for index in range(30)]
    assert len(set(orders)) == 6
    assert orders[4] == tuple(region.phrase for region in get(dataset, index=4).regions)


def test_masks_may_be_polygons_a_flat_polygon_run_lengths_or_pictures(finetune, tmp_path, caplog):
    values = np.zeros(layouts.SIZE, np.uint8)
    values[:2, :3], values[10:12, :5] = 1, 2
    layouts.write_mask(tmp_path / "masks/m.png", values)
    masks = [[SQUARE], SQUARE, BOX, "masks/m.png", {"path": "masks/m.png", "value": 2}]
    with caplog.at_level(logging.WARNING):
        dataset = finetune({"mask": masks, "text": list("abcde")})
    assert "1 items have a polygon where a list of polygons should be" in caplog.text
    assert by_phrase(get(dataset)) == {"a": 400, "b": 400, "c": 100, "d": 16, "e": 10}


def test_objects_of_one_text_are_one_thing(finetune):
    sample = get(finetune({"mask": [[SQUARE], [OVERLAPPING[1]]], "text": ["vessel", "Vessel "]}))
    assert by_phrase(sample) == {"vessel": UNION}


def test_800_pixel_polygons_on_a_512_pixel_image_are_found_and_scaled_once_their_size_is_said(tmp_path):
    polygon = [0, 0, 800, 0, 800, 400, 0, 400]
    for name, more in (("wrong", {}), ("right", {"size": [800, 800]})):
        items = [{"image": "1.png", "mask": [[polygon]], "text": ["vessel"], **more}]
        layouts.write_json(tmp_path / name / "annotations.json", items)
        layouts.write_image(tmp_path / name / "images/1.png", (512, 512))
    with pytest.raises(DataError, match=r"wrong/all row 0: object 0 \('vessel'\):.*outside its image of 512x512"):
        get(load(tmp_path / "wrong", "all"))
    assert areas(get(load(tmp_path / "right", "all"))) == [512 * 256]


def test_a_negative_item_is_answered_without_seg(finetune):
    sample = get(finetune({"mask": [], "text": ["polyp", "tumour"], "negative": True}))
    assert sample.regions == ()
    assert len(answers(sample)) == 2
    assert "[SEG]" not in "".join(answers(sample))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"mask": [[SQUARE], [SQUARE]]}, "2 masks for 1 texts"),
        ({"mask": []}, "0 masks for 1 texts"),
        ({"mask": None}, "0 masks for 1 texts"),
        ({"mask": "masks/m.png"}, "has mask = 'masks/m.png'; expected a list"),
        ({"mask": [{"path": "1.jpg", "value": "2"}]}, "has the value '2'; expected a whole number"),
        ({"mask": [[[5, 5]]]}, "2 numbers"),
        ({"mask": [[]]}, "no polygon"),
        ({"mask": [rle(box_mask(0, 0, 0, 0))]}, "empty"),
        ({"mask": [rle(box_mask(0, 0, 3, 3, (40, 61)))]}, "61x40 pixels on an image"),
        ({"mask": ["masks/none.png"]}, "there is no masks/none.png"),
        ({"text": "vessel"}, "text = 'vessel'; expected list"),
        ({"text": [" "]}, "says nothing"),
        ({"size": 512}, r"size is 512; expected \[height, width\]"),
    ],
)
def test_wrong_items_are_bad_samples_and_the_others_are_not(finetune, item, message):
    dataset = finetune({}, {"image": "2.jpg", **item})
    assert len(get(dataset, 0).regions) == 1
    with pytest.raises((DataError, MediaError), match=f"row 1.*{message}"):
        get(dataset, 1)


def test_a_value_that_no_pixel_has_is_told_with_those_that_are_there(finetune, tmp_path):
    layouts.write_mask(tmp_path / "m.png", box_mask(0, 0, 3, 3).astype(np.uint8) * 7)
    with pytest.raises(DataError, match=r"m\.png has no pixel of the value 2; its values begin 0, 7"):
        get(finetune({"mask": [{"path": "m.png", "value": 2}]}))


def test_an_unknown_split_is_told_lest_it_is_trained_on(finetune):
    with pytest.raises(DataError, match="item 0 is in the split 'holdout'"):
        finetune({"split": "holdout"})


# --- COCO JSON


@pytest.mark.parametrize("place", ["annotations.json", "annotations/instances.json", "_annotations.coco.json"])
def test_coco_is_known_by_its_content(tmp_path, place):
    layouts.write_json(tmp_path / place, coco({}, {"segmentation": [OVERLAPPING[1]]}, {"category_id": 2}))
    layouts.write_image(tmp_path / "images/1.jpg")
    assert by_phrase(get(load(tmp_path, "all"))) == {"vessel": UNION, "cup": 400}


def test_an_annotation_may_have_a_text_of_its_own(tmp_path, caplog):
    content = coco({"text": "the left one"}, {"caption": "the right one"}, names=("1.jpg", "2.jpg"))
    layouts.write_json(tmp_path / "coco.json", content)
    layouts.write_image(tmp_path / "1.jpg")
    with caplog.at_level(logging.WARNING):
        dataset = load(tmp_path, "all")
    assert set(by_phrase(get(dataset))) == {"the left one", "the right one"}
    assert "1 of 2 images have no object and are left out" in caplog.text


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"segmentation": [[1, 2, 3, 4]]}, r"row 0: object 0 \('Vessel'\): a polygon has 4 numbers"),
        ({"segmentation": None}, "no segmentation; a box is no mask"),
        ({"segmentation": {**BOX, "size": [60, 40]}}, "40x60 pixels on an image of 60x40"),
    ],
)
def test_wrong_objects_of_coco_are_bad_samples(tmp_path, annotation, message):
    layouts.write_json(tmp_path / "coco.json", coco(annotation))
    layouts.write_image(tmp_path / "images/1.jpg")
    with pytest.raises(DataError, match=message):
        get(load(tmp_path, "all"))


@pytest.mark.parametrize(
    ("annotation", "message"),
    [({"image_id": 5}, "annotation 0: image 5"), ({"category_id": 5}, "annotation 0: category 5")],
)
def test_files_that_do_not_belong_together_are_told(tmp_path, annotation, message):
    layouts.write_json(tmp_path / "coco.json", coco(annotation))
    with pytest.raises(DataError, match=message):
        load(tmp_path, "all")


# --- splits and groups


def test_an_image_of_coco_may_state_its_split(tmp_path):
    content = coco({}, {"image_id": 1}, names=("1.jpg", "2.jpg"))
    content["images"][0]["split"], content["images"][1]["split"] = "test", "Train"
    layouts.write_json(tmp_path / "coco.json", content)
    assert [row.entry.split for row in survey(tmp_path).rows] == ["test", "train"]
    content["images"][1]["split"] = "restval"
    layouts.write_json(tmp_path / "coco.json", content)
    assert [row.entry.split for row in survey(tmp_path).rows] == ["test", ""]


def test_split_folders_are_whole_folders_and_ids_stay_different(tmp_path):
    for split, count in (("train", 2), ("valid", 1)):
        names = tuple(f"{number}.jpg" for number in range(count))
        content = coco(*({"image_id": number} for number in range(count)), names=names)
        layouts.write_json(tmp_path / split / "_annotations.coco.json", content)
        for name in names:
            layouts.write_image(tmp_path / split / name)
    assert [len(load(tmp_path, split)) for split in ("train", "val", "all")] == [2, 1, 3]
    everything = load(tmp_path, "all")
    assert [get(everything, row).id for row in range(3)] == ["train/0.jpg", "train/1.jpg", "val/0.jpg"]
    with pytest.raises(DataError, match="has no test; it has train, val"):
        load(tmp_path, "test")


def test_a_split_folder_without_annotations_is_told(tmp_path):
    layouts.write_json(tmp_path / "train/coco.json", coco({}))
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="none in test"):
        load(tmp_path, "train")


def test_two_folders_for_one_split_are_told_lest_one_is_passed_over(tmp_path):
    for name in ("train", "val", "valid"):
        layouts.write_json(tmp_path / name / "coco.json", coco({}))
    with pytest.raises(DataError, match="several folders for one split among train, val, valid"):
        load(tmp_path, "train")


def test_split_files_are_told_by_their_names_as_coco_has_them(tmp_path):
    for split, count in (("train", 3), ("val", 1)):
        names = tuple(f"{split}{number}.jpg" for number in range(count))
        content = coco(*({"image_id": number} for number in range(count)), names=names)
        layouts.write_json(tmp_path / f"annotations/instances_{split}2017.json", content)
        for name in names:
            layouts.write_image(tmp_path / f"{split}2017" / name)
    assert [len(load(tmp_path, split)) for split in ("train", "val")] == [3, 1]
    assert get(load(tmp_path, "val")).id == "val/val0.jpg"


def test_items_may_say_their_split(finetune, tmp_path):
    finetune({"split": "train"}, {"image": "2.jpg", "split": "validation"}, {"image": "3.jpg"})
    assert [get(load(tmp_path, "train"), row).id for row in range(2)] == ["train/1.jpg", "3.jpg"]
    assert [row.entry.names for row in load(tmp_path, "val").rows] == [("2.jpg",)]


def test_a_split_or_group_of_null_is_none(finetune, tmp_path):
    finetune(*({"image": f"{number}.jpg", "split": None, "group": None} for number in (1, 2, 3)))
    assert [len(load(tmp_path, split)) for split in ("train", "val", "test")] == [1, 1, 1]


def test_without_splits_whole_groups_are_dealt_out_and_never_meet(finetune, tmp_path):
    finetune(*({"image": f"patient{number % 20}/{number:03d}.jpg"} for number in range(60)))
    found = {split: load(tmp_path, split).rows for split in ("train", "val", "test")}
    groups = {split: {row.entry.group for row in rows} for split, rows in found.items()}
    assert {split: len(rows) for split, rows in found.items()} == {"train": 48, "val": 6, "test": 6}
    assert sum(map(len, groups.values())) == len(set().union(*groups.values())) == 20
    assert [row.entry.names for row in load(tmp_path, "val").rows] == [row.entry.names for row in found["val"]]


def test_a_pattern_finds_groups_in_names(finetune, tmp_path):
    finetune(*({"image": f"p{number // 10}_frame{number:02d}.jpg"} for number in range(30)))
    rows = load(tmp_path, "val", group=r"(p\d+)_").rows
    assert len(rows) == 10
    assert len({row.entry.group for row in rows}) == 1
    for pattern, message in ((r"(q\d+)_", "finds nothing"), ("(", "no regular expression")):
        with pytest.raises(ConfigError, match=message):
            load(tmp_path, "val", group=pattern)


def test_too_few_groups_are_all_for_training(finetune, tmp_path):
    finetune({}, {"image": "2.jpg"})
    assert len(load(tmp_path, "train")) == 2
    with pytest.raises(DataError, match="2 groups are too few"):
        load(tmp_path, "val")


# --- what is recognised


def test_a_folder_of_no_known_form_is_told_what_was_looked_for_and_what_is_there(tmp_path):
    layouts.write_json(tmp_path / "notes.json", {"author": "me"})
    layouts.write_image(tmp_path / "a.jpg")
    with pytest.raises(
        DataError, match=r"annotations\.json.*COCO.*Label Studio.*CVAT.*masks/.*There is: a\.jpg, notes\.json"
    ):
        load(tmp_path, "train")


def test_two_annotations_of_one_folder_are_told(tmp_path):
    layouts.write_json(tmp_path / "a.json", coco({}))
    layouts.write_json(tmp_path / "b.json", coco({}))
    with pytest.raises(DataError, match=r"several annotations \(a\.json, b\.json\)"):
        load(tmp_path, "train")


def test_wrong_splits_and_folders_are_told(tmp_path):
    with pytest.raises(ConfigError, match="expected train, val, test or all"):
        load(tmp_path, "dev")
    with pytest.raises(DataError, match="is no folder"):
        load(tmp_path / "none", "train")
    (tmp_path / "coco.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        load(tmp_path, "train")
    (tmp_path / "coco.json").write_text("{}\n{}")
    with pytest.raises(DataError, match="a JSON value a line where one is expected: put them into a list"):
        load(tmp_path, "train")


def test_annotations_above_those_of_splits_are_told(tmp_path):
    for place in ("train/annotations.json", "valid/annotations.json", "all.json"):
        layouts.write_json(tmp_path / place, coco({}))
    layouts.write_json(tmp_path / "meta.json", {"classes": []})
    assert [(remark.kind, remark.place) for remark in survey(tmp_path).remarks] == [("passed_over", "all.json")]


@pytest.mark.parametrize("content", [{"images": [], "categories": []}, [{"file": "1.png"}], 7])
def test_json_of_another_form_beside_annotations_is_told(tmp_path, content):
    layouts.write_json(tmp_path / "annotations/train.json", coco({}))
    layouts.write_json(tmp_path / "annotations/val.json", content)
    (told,) = survey(tmp_path).remarks
    assert (told.kind, told.place, told.text[:25]) == ("passed_over", "val.json", "it is JSON of another for")
