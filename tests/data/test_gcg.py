import layouts
import pytest
from layouts import OVERLAPPING, SQUARE, UNION, answers, areas, box_mask, rle

from segue.data.base import rng_for
from segue.data.gcg import load
from segue.errors import ConfigError, DataError
from segue.geometry.notation import parse_grounded

MAN, HORSE = rle(box_mask(0, 0, 10, 10)), rle(box_mask(20, 5, 20, 20))
CAPTION = "A man rides a horse."


def grounding(start, stop, *masks):
    return {"token_positives": [start, stop], "rle_masks": list(masks)}


@pytest.fixture
def make(tmp_path):
    """Writes captions of one part and gives the samples of its rows."""
    files = {
        "grandf": ("GranDf_HA_GCG_train.json", "grandf/train"),
        "openpsg": ("OpenPsgGCG_train.json", "coco2017"),
        "refcocog": ("RefCOCOg_GCG_train.json", "coco2014/train2014"),
        "flickr": ("flickr_mergedGT_GCG_train.json", "flickr30k/Flickr30K"),
    }

    def write(variant, content):
        file, images = files[variant]
        layouts.write_json(tmp_path / "glamm_data/annotations" / file, content)
        layouts.write_image(tmp_path / "glamm_data/images" / images / "a.jpg")
        dataset = load(tmp_path, "train", variant=variant)
        return [dataset.get(number, rng_for(0, 0, number)) for number in range(len(dataset))]

    return write


def grandf(groundings, caption=CAPTION):
    return [{"file_name": "a.jpg", "height": 40, "width": 60, "caption": caption, "groundings": groundings}]


@pytest.mark.parametrize("variant", ["grandf", "openpsg"])
def test_phrases_are_tagged_in_reading_order_with_exact_spaces(make, variant):
    (sample,) = make(variant, grandf({"a horse": grounding(12, 19, HORSE), "A man": grounding(0, 5, MAN)}))
    assert answers(sample) == ["<p> A man </p> [SEG] rides <p> a horse </p> [SEG]."]
    assert areas(sample) == [100, 400]
    assert sample.task == "caption"


def test_regions_carry_the_spans_that_a_reader_of_the_answer_finds(make):
    (sample,) = make("grandf", grandf({"a horse": grounding(12, 19, HORSE), "A man": grounding(0, 5, MAN)}))
    text, regions = parse_grounded(answers(sample)[0])
    assert text == CAPTION
    assert [(region.phrase, region.span) for region in sample.regions] == [("A man", (0, 5)), ("a horse", (12, 19))]
    assert [region.span for region in regions] == [region.span for region in sample.regions]


def test_several_masks_of_a_phrase_are_united(make):
    (sample,) = make("grandf", grandf({"A man": grounding(0, 5, MAN, HORSE, HORSE)}))
    assert areas(sample) == [500]


def test_null_groundings_are_skipped_and_captions_without_any_dropped(make):
    assert len(make("grandf", grandf({"A man": None, "a horse": grounding(12, 19, HORSE)}))) == 1
    assert make("grandf", grandf({"A man": None})) == []


def test_of_overlapping_phrases_the_longer_stays_and_the_text_is_whole(make):
    (sample,) = make("grandf", grandf({"man": grounding(2, 5, MAN), "A man rides": grounding(0, 11, HORSE)}))
    assert answers(sample) == ["<p> A man rides </p> [SEG] a horse."]
    assert areas(sample) == [400]


def test_positions_that_count_quotation_marks_are_set_right_by_the_phrase(make):
    (sample,) = make("grandf", grandf({"A man": grounding(1, 6, MAN)}, caption=f'"{CAPTION}" '))
    assert answers(sample) == ["<p> A man </p> [SEG] rides a horse."]


def test_refcocog_finds_its_sentences_in_the_lower_case_caption(make):
    refs = [
        {"sentence": "A Horse", "bbox": [], "segmentation": OVERLAPPING},
        {"sentence": "a zebra", "bbox": [], "segmentation": [SQUARE]},
    ]
    (sample,) = make("refcocog", [{"1234": {"img_file_name": "a.jpg", "caption": CAPTION, "refs": refs}}])
    assert answers(sample) == ["a man rides <p> a horse </p> [SEG]."]
    assert areas(sample) == [UNION]


def flickr(caption=CAPTION, height=40, **changes):
    annotation = {
        "image_id": 7,
        "bbox": [0, 0, 10, 10],
        "area": 100,
        "tokens_positive": [[0, 5], [2, 5]],
        "sam_mask": MAN,
    }
    images = [{"id": 7, "file_name": "a.jpg", "height": height, "width": 60, "caption": caption}]
    return {"images": images, "annotations": [annotation | changes]}


def test_flickr_takes_the_first_span(make):
    (sample,) = make("flickr", flickr())
    assert answers(sample) == ["<p> A man </p> [SEG] rides a horse."]


@pytest.mark.parametrize(
    "content",
    [
        flickr("A man"),
        flickr(height=31),
        flickr(ignore=1),
        flickr(area=0),
        flickr(bbox=[0, 0, 0.5, 10]),
        flickr(bbox=[60, 0, 10, 10]),
        flickr(tokens_positive=[]),
    ],
)
def test_flickr_leaves_out_what_cannot_be_learned_from(make, content):
    assert make("flickr", content) == []


@pytest.mark.parametrize(
    ("groundings", "message"),
    [
        ({"A man": grounding(0, 5, rle(box_mask(0, 0, 0, 0)))}, "'A man': the mask of an object is empty"),
        ({"A man": grounding(0, 5, rle(box_mask(0, 0, 3, 3, (20, 20))))}, "20x20 pixels on an image of 60x40"),
        ({"the end": grounding(15, 99, MAN)}, "behind the caption's 20 characters"),
    ],
)
def test_bad_groundings_are_bad_samples(make, groundings, message):
    with pytest.raises(DataError, match=message):
        make("grandf", grandf(groundings))


def test_missing_files_and_wrong_names_are_told(tmp_path):
    with pytest.raises(DataError, match=r"GranDf_HA_GCG_train\.json, no glamm_data/images/grandf/train"):
        load(tmp_path, "train", variant="grandf")
    with pytest.raises(ConfigError, match="known are refcocog, grandf, flickr, openpsg"):
        load(tmp_path, "train", variant="psg")
