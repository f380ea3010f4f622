"""Readers asked as an evaluation asks: every expression once, in the words of the protocol, with its whole truth."""

import json

import fixtures_segmentation
import layouts
import numpy as np
import pytest
from layouts import UNION, areas, box_mask

from segue.data import gcg, reason_seg, ref_vos, refcoco, region_caption
from segue.data.base import rng_for
from segue.errors import ConfigError, DataError
from segue.geometry.masks import encode

VIDEO = ("Segment {phrase}.", "{phrase} Show it.")


def samples(dataset):
    return [dataset.get(number, rng_for(0, 0, number)) for number in range(len(dataset))]


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_every_sentence_of_every_referent_is_a_question_as_it_is_written(tmp_path):
    root = layouts.refcoco(tmp_path, variant="grefcoco", pickled=False)
    dataset = refcoco.load(root, "train", variant="grefcoco", prompt="<image> Find {phrase}!")
    asked = samples(dataset)
    texts = [f" Find {word} {number}!" for number in range(4) for word in ("thing", "object")]
    assert [sample.messages[0].text for sample in asked] == texts
    assert areas(asked[0]) == [400] and areas(asked[2])[0] > UNION
    assert asked[6].regions == () and asked[6].messages[-1].text == "", "what fits nothing has no answer"
    assert len({sample.id for sample in asked}) == 8
    assert [dataset.medium_of(number) for number in range(8)] == [asked[number].group for number in range(8)]


def test_every_expression_is_asked_about_all_frames_questions_in_words_of_their_own(tmp_path):
    asked = samples(ref_vos.load(layouts.video_expressions(tmp_path), "train", variant="mevis", prompt=VIDEO))
    texts = [sample.messages[0].text for sample in asked]
    assert texts == [
        "\nSegment The box moving right..",
        "\nWhich things are there at first? Show it.",
        "\nSegment the cat.",
    ]
    assert [len(sample.regions) for sample in asked] == [1, 1, 0]
    assert all(sample.frames == tuple(range(8)) for sample in asked)
    both = box_mask(0, 10, 12, 12) | box_mask(40, 20, 10, 10)
    assert (asked[1].regions[0].masks.dense(0) == both).all()
    target = asked[1].target
    assert (target["video"], target["expression"], target["frames"][-1]) == ("b", "1", "00007")


def test_what_is_never_in_sight_can_be_measured_on_but_not_learned_from(tmp_path):
    root = layouts.video_expressions(tmp_path)
    edit(root / "video_datas/mevis/train/mask_dict.json", lambda masks: masks.update({"41": [None] * 8}))
    sample = samples(ref_vos.load(root, "train", variant="mevis", prompt=VIDEO))[0]
    assert not sample.regions[0].masks.dense(3).any()
    with pytest.raises(DataError, match="empty on every frame"):
        ref_vos.load(root, "train", variant="mevis", expressions=None).get(0, rng_for(0, 0, 0))


@pytest.mark.parametrize("split", ["valid", "test"])
def test_splits_whose_truth_a_server_has_can_only_be_asked_about(tmp_path, split):
    file = "meta_expressions_release.json" if split == "test" else "meta_expressions.json"
    root = fixtures_segmentation.hidden(tmp_path, f"mevis/{split}/{file}", f"mevis/{split}/JPEGImages")
    asked = samples(ref_vos.load(root, split, variant="mevis", prompt="Segment {phrase}."))
    assert len(asked) == 3 and not any(sample.regions for sample in asked)
    with pytest.raises(ConfigError, match="can be asked about, but not learned from"):
        ref_vos.load(root, split, variant="mevis")


def test_davis_counts_masks_over_sorted_videos(tmp_path):
    asked = samples(ref_vos.load(fixtures_segmentation.davis(tmp_path), "valid", variant="ref_davis17", prompt=VIDEO))
    assert len(asked) == 16
    for sample in asked:
        video, number = sample.target["video"], int(sample.target["expression"]) // 4
        truth = fixtures_segmentation.TRACKS[{"a": ("41", "42"), "b": ("42", "43")}[video][number]]
        assert all((sample.regions[0].masks.dense(frame) == mask).all() for frame, mask in enumerate(truth))


def test_davis_palettes_number_objects_and_four_people_describe_each(tmp_path):
    root = fixtures_segmentation.davis(tmp_path, palettes=True)
    asked = samples(ref_vos.load(root, "valid", variant="ref_davis17_objects", prompt=VIDEO))
    by_video = [sample for sample in asked if sample.group == "a"]
    assert [sample.target["object"] for sample in by_video] == [1] * 4 + [2] * 4
    assert [sample.target["annotator"] for sample in by_video] == [0, 1, 2, 3] * 2
    void = np.zeros(layouts.SIZE, bool)
    void[38:, 50:] = True
    assert by_video[0].target["void"] == [encode(void)] * 6
    assert (by_video[4].regions[0].masks.dense(5) == fixtures_segmentation.TRACKS["42"][5]).all()
    assert "void" not in next(sample for sample in asked if sample.group == "b").target


def test_objects_without_a_number_are_told_by_the_order_of_their_expressions(tmp_path):
    root = fixtures_segmentation.davis(tmp_path, palettes=True)

    def forget(content):
        for video in content["videos"].values():
            for expression in video["expressions"].values():
                del expression["obj_id"]

    edit(root / "video_datas/davis17/meta_expressions/valid/meta_expressions.json", forget)
    asked = samples(ref_vos.load(root, "valid", variant="ref_davis17_objects", prompt=VIDEO))[:8]
    assert [(one.target["object"], one.target["annotator"]) for one in asked] == [
        (number, who) for number in (1, 2) for who in range(4)
    ]


def test_revos_knows_the_foreground_and_the_kind_of_each_expression(tmp_path):
    asked = samples(ref_vos.load(fixtures_segmentation.revos(tmp_path), "valid", variant="revos", prompt=VIDEO))
    assert sorted(sample.target["type_id"] for sample in asked) == [0, 0, 1, 1, 2]
    both = fixtures_segmentation.TRACKS["41"][2] | fixtures_segmentation.TRACKS["42"][2]
    assert next(sample for sample in asked if sample.group == "a").target["foreground"][2] == encode(both)


def test_a_foreground_of_another_length_is_told(tmp_path):
    root = fixtures_segmentation.revos(tmp_path)
    path = root / "video_datas/revos/mask_dict_foreground.json"
    edit(path, lambda content: content["a"]["masks_rle"].pop())
    dataset = ref_vos.load(root, "valid", variant="revos", prompt=VIDEO)
    row = next(number for number in range(len(dataset)) if dataset.medium_of(number) == "a")
    with pytest.raises(DataError, match="the foreground has 5 frames, the video 6"):
        dataset.get(row, rng_for(0, 0, row))


def test_an_image_to_be_described_has_captions_labels_and_masks(tmp_path):
    root = fixtures_segmentation.grounded(tmp_path, "val")
    first = samples(gcg.load(root, "val", variant="grandf", prompt="Go on."))[0]
    assert (first.messages[0].text, first.regions, first.id) == ("\nGo on.", (), "red-1")
    assert first.target["references"] == ["A man rides a horse."] and first.target["labels"] == ["A man", "a horse"]
    assert first.target["masks"][1]["counts"] == encode(box_mask(20, 5, 15, 20))


def test_the_original_caption_prompt_spaces_are_in_the_upstream_record_alone():
    from segue.evals.benchmarks.segmentation import PIXELS

    prompts = {one.name: one.options["prompt"] for one in PIXELS if one.name.startswith("gcg_val")}
    assert "with interleaved     segmentation masks" in prompts["gcg_val_upstream"]
    assert "with interleaved segmentation masks" in prompts["gcg_val"]


def test_a_region_to_be_described_is_the_region_by_image_id(tmp_path):
    root = fixtures_segmentation.regions(tmp_path)
    path = root / "region_caption/refcocog/finetune_refcocog_val_with_mask.json"
    edit(path, lambda content: content["annotations"].reverse())
    asked = samples(region_caption.load(root, "val", variant="refcocog", prompt="What is region1?"))
    region = asked[2].messages[0].parts[1]
    assert (region.masks.dense(0) == box_mask(6, 4, 30, 20)).all()
    assert asked[2].target["references"] == ["zebra near a tree"]


def test_reasonseg_draws_the_smaller_shape_on_top_and_tells_sentences_from_phrases(tmp_path):
    dataset = reason_seg.load(fixtures_segmentation.reason(tmp_path, "val"), "val", prompt=VIDEO)
    sentence, phrase = samples(dataset)
    assert [sample.messages[0].text for sample in (sentence, phrase)] == [
        "\nWhat would a be for? Show it.",
        "\nSegment the thing for the roof.",
    ]
    mask = sentence.regions[0].masks.dense(0)
    assert mask[6, 12] and not mask[12, 17] and sentence.target["is_sentence"]
    assert phrase.target["ignored"] == encode(np.zeros(layouts.SIZE, bool))


def test_reasonseg_can_be_learned_from_and_reads_the_other_encoding(tmp_path):
    root = fixtures_segmentation.reason(tmp_path, "train")
    path = root / "reason_seg/ReasonSeg/train/b.json"
    path.write_bytes(path.read_text().replace("the roof", "the caf\u00e9").encode("cp1252"))
    sample = reason_seg.load(root, "train").get(1, rng_for(0, 0, 1))
    assert "caf\u00e9" in sample.messages[0].text and "[SEG]" in sample.messages[-1].text


def test_what_systems_leave_beside_reasonseg_passes_by(tmp_path):
    root = fixtures_segmentation.reason(tmp_path, "train")
    (root / "reason_seg/ReasonSeg/train/._b.json").write_bytes(b"\0\5\x16\7")
    assert len(reason_seg.load(root, "train")) == 2


OTHERS = {
    "gb18030": "绿色的是什么？",
    "utf-8-sig": "qué es verde, ¿eh?",
    "utf-16": "qué es verde, ¿eh?",
    "cp1252": "what\u00a0is it",
}


def reasonseg_with(root, **change):
    """The record of the phrase, changed, and what the dataset makes of it."""
    fixtures_segmentation.reason(root, "train")
    path = root / "reason_seg/ReasonSeg/train/b.json"
    record = json.loads(path.read_text()) | change
    path.write_text(json.dumps(record, ensure_ascii=False))
    return path


@pytest.mark.parametrize(("encoding", "text"), OTHERS.items())
def test_reasonseg_is_read_in_any_encoding_that_can_be_told(tmp_path, encoding, text):
    path = reasonseg_with(tmp_path, text=[text])
    path.write_bytes(path.read_text().encode(encoding))
    assert text in reason_seg.load(tmp_path, "train").get(1, rng_for(0, 0, 1)).messages[0].text


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"text": [" "]}, DataError, "b.json has the text ' ', which asks for nothing"),
        ({"shapes": [{"label": "target", "points": [[float("nan"), 4], [20, 4], [20, 9]]}]}, DataError, "is no number"),
        ({"shapes": [{"label": "target", "points": [[float("inf"), 4], [20, 4], [20, 9]]}]}, DataError, "is no number"),
        (
            {"shapes": [{"label": "target", "points": [[1e300, 4], [20, 4], [20, 9]]}]},
            DataError,
            r"1e\+300, which is no",
        ),
        ({"shapes": [{"label": "target", "points": [[500, 400], [900, 400], [900, 900]]}]}, DataError, "lies outside"),
    ],
)
def test_what_is_wrong_with_a_file_of_reasonseg_is_told(tmp_path, change, error, message):
    reasonseg_with(tmp_path, **change)
    with pytest.raises(error, match=message):
        reason_seg.load(tmp_path, "train").get(1, rng_for(0, 0, 1))


@pytest.mark.parametrize(
    ("load", "split", "options", "error", "message"),
    [
        (reason_seg.load, "test", {}, DataError, "has no annotations"),
        (reason_seg.load, "all", {}, ConfigError, "unknown split of reason_seg"),
        (gcg.load, "val", {"variant": "flickr", "prompt": "x"}, ConfigError, "variant of gcg with a prompt"),
        (gcg.load, "val", {"variant": "grandf"}, ConfigError, "unknown split of gcg"),
        (region_caption.load, "val", {"variant": "part", "prompt": "x"}, ConfigError, "variant and split"),
    ],
)
def test_wrong_names_are_told(tmp_path, load, split, options, error, message):
    (tmp_path / "reason_seg/ReasonSeg/test").mkdir(parents=True)
    with pytest.raises(error, match=message):
        load(tmp_path, split, **options)
