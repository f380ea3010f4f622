"""Whatever stands in the place of a part of an annotation, the answer is an error of the data and never a crash."""

import copy
import json

import layouts
import pytest
import test_samples
from layouts import SQUARE, rle

from segue.data.base import rng_for
from segue.datasets import DATASETS
from segue.errors import SegueError

COCO = {
    "images": [{"id": 0, "file_name": "1.jpg", "height": 40, "width": 60}],
    "annotations": [{"image_id": 0, "category_id": 1, "segmentation": [SQUARE]}],
    "categories": [{"id": 1, "name": "cup"}],
}
FINETUNE = [
    {"image": "1.jpg", "mask": [[SQUARE], rle(layouts.box_mask(1, 1, 5, 5))], "text": ["a", "b"], "size": [40, 60]}
]
RESULT = {"id": "r", "type": "polygonlabels", "original_width": 60, "original_height": 40}
STUDIO = [
    {
        "data": {"image": "1.jpg"},
        "annotations": [
            {"result": [{**RESULT, "value": {"points": [[1, 1], [50, 1], [50, 50]], "polygonlabels": ["cup"]}}]}
        ],
    }
]


def places(content, above=()):
    """The way to every part of a JSON value."""
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, part in parts:
        yield (*above, key)
        yield from places(part, (*above, key))


def changed(content, place, value):
    if not place:
        return value
    whole = copy.deepcopy(content)
    parent = whole
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    return whole


def crashes(name, root, path, **options):
    """Every change of a file after which its dataset ends in anything but a sample or one of our errors."""
    original = json.loads(path.read_text())
    for place in ((), *dict.fromkeys(place for place in places(original) if len(place) < 9)):
        for value in (None, 3, "x", {}, [[1]]):
            path.write_text(json.dumps(changed(original, place, value)))
            try:
                dataset = DATASETS[name](root, "train", **options)
                for row in range(len(dataset)):
                    dataset.get(row, rng_for(0, 0, 0))
            except SegueError:
                continue
            except Exception as error:  # noqa: BLE001  what it is, is what we want to see
                yield place, value, repr(error)


@pytest.mark.parametrize("content", [COCO, FINETUNE, STUDIO], ids=["coco", "finetune", "label_studio"])
def test_wrong_annotations_of_my_folder_are_told(tmp_path, content):
    path = layouts.write_json(tmp_path / "data.json", content)
    layouts.write_image(tmp_path / "images/1.jpg")
    assert len(DATASETS["folder"](tmp_path, "train").get(0, rng_for(0, 0, 0)).regions) > 0
    assert list(crashes("folder", tmp_path, path)) == []


@pytest.mark.parametrize(
    ("name", "path", "options"),
    [
        ("gcg", "glamm_data/annotations/GranDf_HA_GCG_train.json", {"variant": "grandf"}),
        ("region_caption", "osprey-724k/Osprey-724K/osprey_detail_description.json", {"variant": "description"}),
        ("image_chat", test_samples.image_chat.CONVERSATIONS, {}),
        ("video_chat", test_samples.video_chat.CONVERSATIONS, {}),
    ],
)
def test_wrong_annotations_of_the_official_datasets_are_told(tmp_path, name, path, options):
    test_samples.CASES[name][0](tmp_path)
    assert list(crashes(name, tmp_path, tmp_path / path, **options)) == []


def test_wrong_expressions_of_videos_are_told(tmp_path):
    root = layouts.video_expressions(tmp_path)
    path = root / "video_datas/mevis/train/meta_expressions.json"
    assert list(crashes("ref_vos", root, path, variant="mevis")) == []
