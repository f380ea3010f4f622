import layouts
import pytest
from layouts import SQUARE, answers, box_mask, questions, rle, runs

from segue.data.base import rng_for
from segue.data.region_caption import VARIANTS, load
from segue.errors import DataError
from segue.types import Region

SHAPES = [
    {"segmentation": [SQUARE]},
    {"segmentation": rle(box_mask(0, 0, 9, 9))},
    {"segmentation": runs(box_mask(3, 3, 5, 5))},
]


@pytest.fixture
def make(tmp_path):
    def write(variant="conversation", **record):
        row = {"file_name": "000000000009.jpg", "height": 40, "width": 60, "annotation": SHAPES, **record}
        layouts.write_json(tmp_path / "osprey-724k/Osprey-724K" / VARIANTS[variant], [row])
        layouts.write_image(tmp_path / "osprey-724k/coco/train2017/000000000009.jpg")
        return load(tmp_path, "train", variant=variant).get(0, rng_for(0, 0, 0))

    return write


def talk(*texts):
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def test_regions_are_prompts_of_the_first_question_and_answers_have_none(make):
    sample = make(conversations=talk("<image>\nWhat is <region1>?", "<region1> is a cup.", "And <region2>?", "A dog."))
    prompts = [part for part in sample.messages[0].parts if isinstance(part, Region)]
    assert [int(region.masks.dense(0).sum()) for region in prompts] == [400, 81, 25]
    assert questions(sample) == ["What is region1?", "And region2?"]
    assert answers(sample) == ["region1 is a cup.", "A dog."]
    assert (sample.regions, sample.task) == ((), "region")


def test_descriptions_become_a_turn_for_each_region(make):
    sample = make("description", description=["<region1>: A cup.", "A dog.", "<region2>: Its <b>tail</b>."])
    assert answers(sample) == ["A cup.", "A dog.", "Itsbtail/b.".replace("Itsb", "Its b")]
    assert [
        name in question for name, question in zip(("region1", "region2", "region2"), questions(sample), strict=True)
    ] == [True] * 3


def test_the_short_form_asks_for_a_word_or_phrase(make):
    sample = make("short", conversations=talk("What is <region1>?", "cup"))
    assert questions(sample) == ["What is region1? Answer with a single word or a short phrase."]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"description": ["<region4>: A cup."]}, "region4 is described, but 3 regions"),
        ({"description": []}, "nothing to learn"),
        ({"annotation": [{"segmentation": [[1, 2]]}], "description": ["A cup."]}, "region1: a polygon has 2 numbers"),
        ({"annotation": [{"segmentation": rle(box_mask(0, 0, 0, 0))}], "description": ["A cup."]}, "region1.*empty"),
        ({"width": 61, "description": ["A cup."]}, "annotated at 61x40"),
    ],
)
def test_bad_rows_are_bad_samples(make, record, message):
    with pytest.raises(DataError, match=message):
        make("description", **record)
