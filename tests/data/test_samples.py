"""The contract of every dataset: its samples are fit for training, and the same for the same numbers."""

from dataclasses import astuple
from functools import partial

import fixtures_segmentation
import layouts
import pytest
from layouts import OVERLAPPING, SQUARE, box_mask, rle

from segue.data import image_chat, video_chat
from segue.data.base import rng_for
from segue.datasets import DATASETS
from segue.prepare import prepare

TALK = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A box."}]


def write_image_chat(root):
    layouts.write_json(
        root / image_chat.CONVERSATIONS, [{"image": "1.jpg", "conversations": TALK}, {"conversations": TALK}]
    )
    layouts.write_image(root / image_chat.IMAGES / "1.jpg")


def write_video_chat(root):
    layouts.write_json(root / video_chat.CONVERSATIONS, [{"video": "v", "conversations": TALK}])
    layouts.write_frames(root / video_chat.VIDEOS / "v", 9)


def write_gcg(root):
    spans = {"A man": [0, 5], "a horse": [12, 19]}
    groundings = {
        name: {"token_positives": span, "rle_masks": [rle(box_mask(span[0], 3, 9, 9))]} for name, span in spans.items()
    }
    record = {
        "file_name": "a.jpg",
        "height": 40,
        "width": 60,
        "caption": "A man rides a horse.",
        "groundings": groundings,
    }
    layouts.write_json(root / "glamm_data/annotations/GranDf_HA_GCG_train.json", [record])
    layouts.write_image(root / "glamm_data/images/grandf/train/a.jpg")


def write_regions(root):
    record = {"file_name": "a.jpg", "annotation": [{"segmentation": [SQUARE]}] * 2, "description": ["A cup.", "A dog."]}
    layouts.write_json(root / "osprey-724k/Osprey-724K/osprey_detail_description.json", [record])
    layouts.write_image(root / "osprey-724k/coco/val2017/a.jpg")


def write_folder(root):
    layouts.write_json(
        root / "annotations.json", [{"image": "1.jpg", "mask": [OVERLAPPING, [SQUARE]], "text": ["a", "b"]}]
    )
    layouts.write_image(root / "images/1.jpg")


CASES = {
    "refcoco": (layouts.refcoco, {}),
    "ref_vos": (layouts.video_expressions, {"variant": "mevis"}),
    "image_chat": (write_image_chat, {}),
    "video_chat": (write_video_chat, {}),
    "gcg": (write_gcg, {"variant": "grandf"}),
    "region_caption": (write_regions, {"variant": "description"}),
    "folder": (write_folder, {}),
    "reason_seg": (partial(fixtures_segmentation.reason, split="train"), {}),
}


@pytest.fixture(params=CASES)
def dataset(request, tmp_path):
    write, options = CASES[request.param]
    write(tmp_path)
    return DATASETS[request.param](tmp_path, "train", **options)


def test_ids_are_unique_and_samples_know_where_they_come_from(dataset):
    samples = [dataset.get(row, rng_for(0, 0, row)) for row in range(len(dataset))]
    assert len({sample.id for sample in samples}) == len(samples) > 0
    assert all(sample.source == dataset.name and sample.group for sample in samples)


def test_the_same_numbers_give_the_same_sample(dataset):
    one, two = (dataset.get(0, rng_for(4, 2, 9)) for _ in range(2))
    assert [message.text for message in one.messages] == [message.text for message in two.messages]
    assert [region.masks.rles for region in one.regions] == [region.masks.rles for region in two.regions]
    assert astuple(one)[4:] == astuple(two)[4:]


def test_samples_become_rows_whose_learned_part_has_a_seg_for_every_mask(dataset, engine):
    for row in range(len(dataset)):
        sample = dataset.get(row, rng_for(0, 0, row))
        plan = ",".join(map(str, sample.frames)) or "first:1"
        example = prepare(sample.messages, engine.processor, frames=plan, max_tiles=1)
        seg = example.ids == engine.processor.seg_id
        assert int(seg.sum()) == len(sample.regions)
        assert (example.labels[seg] == engine.processor.seg_id).all()
        assert (not example.media) == (sample.frames == ())
        assert not example.media or example.media[-1].plan == sample.frames
