import json

import layouts
import numpy as np
import pytest
from layouts import answers, box_mask, questions

from segue.data.base import rng_for
from segue.data.ref_vos import load
from segue.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path):
    return layouts.video_expressions(tmp_path)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_expressions_share_five_frames_in_order(root):
    dataset = load(root, "train", variant="mevis")
    assert len(dataset) == 1
    for index in range(10):
        sample = dataset.get(0, rng_for(0, 0, index))
        assert len(sample.frames) == 5
        assert list(sample.frames) == sorted(set(sample.frames))
        assert len(questions(sample)) == 5
        assert all(region.masks.index.tolist() == list(sample.frames) for region in sample.regions)


def test_masks_stand_on_their_frames_and_objects_are_united(root):
    sample = load(root, "train", variant="mevis", frames=None, expressions=None).get(0, rng_for(0, 0, 0))
    moving, both = sample.regions
    assert sample.frames == tuple(range(8))
    for frame in range(8):
        assert (moving.masks.dense(frame) == box_mask(2 * frame, 10, 12, 12)).all()
    assert (both.masks.dense(0) == (box_mask(0, 10, 12, 12) | box_mask(40, 20, 10, 10))).all()
    assert (both.masks.dense(7) == moving.masks.dense(7)).all(), "null is an empty mask"


def test_an_expression_that_means_nothing_is_answered_without_seg(root):
    sample = load(root, "train", variant="mevis", expressions=None).get(0, rng_for(0, 0, 0))
    assert [answer.count("[SEG]") for answer in answers(sample)] == [1, 1, 0]


def test_statements_are_cleaned_and_questions_stay_with_a_wish_for_a_mask(root):
    sample = load(root, "train", variant="mevis", expressions=None).get(0, rng_for(0, 0, 0))
    assert "the box moving right" in questions(sample)[0]
    assert questions(sample)[1].startswith("Which things are there at first? ")


def test_without_anno_ids_masks_are_counted_in_file_order_with_ids_sorted_as_text(tmp_path):
    root = layouts.video_expressions(tmp_path, "ref_ytvos")
    dataset = load(root, "train", variant="ref_ytvos", frames=1, expressions=None)
    samples = [dataset.get(number, rng_for(0, 0, 0)) for number in range(2)]
    assert [sample.id for sample in samples] == ["b", "a"]
    assert [region.phrase for region in samples[0].regions] == ["moving", "brief"]
    heights = {region.phrase: int(region.masks.dense(0).sum()) // 2 for region in samples[1].regions}
    assert heights == {"expression 0": 2, "expression 1": 3, "expression 10": 4, "expression 2": 5}


def test_ref_davis_counts_over_sorted_videos(tmp_path):
    home = tmp_path / "video_datas/davis17"
    videos = {name: {"frames": ["00000"], "expressions": {"0": {"exp": name}}} for name in ("zebra", "ant")}
    layouts.write_json(home / "meta_expressions/valid/meta_expressions.json", {"videos": videos})
    tracks = {str(number): [layouts.rle(box_mask(0, 0, 3, 1 + number))] for number in range(2)}
    layouts.write_pickle(home / "valid/mask_dict.pkl", tracks)
    for name in videos:
        layouts.write_frames(home / "valid/JPEGImages" / name, 1)
    dataset = load(tmp_path, "valid", variant="ref_davis17", expressions=None)
    found = {sample.id: layouts.areas(sample)[0] for sample in (dataset.get(n, rng_for(0, 0, 0)) for n in range(2))}
    assert found == {"ant": 3, "zebra": 6}


def test_a_folder_with_more_frames_than_are_annotated_keeps_their_numbers(tmp_path):
    root = layouts.video_expressions(tmp_path)
    folder = root / "video_datas/mevis/train/JPEGImages/b"
    for path in folder.iterdir():
        path.rename(path.with_name(f"{5 * int(path.stem):05d}.jpg"))
    for number in range(0, 40):
        if number % 5:
            layouts.write_image(folder / f"{number:05d}.jpg")
    edit(
        root / "video_datas/mevis/train/meta_expressions.json",
        lambda content: content["videos"]["b"].update(frames=[f"{5 * n:05d}" for n in range(8)]),
    )
    sample = load(root, "train", variant="mevis", frames=None, expressions=None).get(0, rng_for(0, 0, 0))
    assert sample.frames == tuple(range(0, 40, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda masks: masks.update({"41": masks["41"][:7]}), "7 masks for 8 frames"),
        (lambda masks: masks.update({"41": [None] * 8}), "empty on every frame"),
        (
            lambda masks: masks.update({"41": [layouts.rle(box_mask(0, 0, 3, 3, (41, 60)))] * 8}),
            "60x41 pixels on an image",
        ),
    ],
)
def test_masks_that_do_not_fit_are_bad_samples(root, change, message):
    edit(root / "video_datas/mevis/train/mask_dict.json", change)
    with pytest.raises(DataError, match=f"b, 'The box moving right.'.*{message}"):
        load(root, "train", variant="mevis", expressions=None).get(0, rng_for(0, 0, 0))


def test_an_object_out_of_sight_on_the_frames_drawn_has_empty_masks(root):
    edit(root / "video_datas/mevis/train/mask_dict.json", lambda masks: masks.update({"41": masks["42"]}))
    dataset = load(root, "train", variant="mevis", frames=1, expressions=None)
    seen = [dataset.get(0, rng_for(0, 0, index)) for index in range(40)]
    assert {sample.frames[0] == 0 for sample in seen} == {True, False}
    for sample in seen:
        assert bool(layouts.areas(sample)[0]) == (sample.frames[0] == 0)


def test_missing_files_and_wrong_names_are_told(tmp_path, root):
    with pytest.raises(DataError, match=r"no revos, no revos/meta_expressions_train_\.json, no revos/mask_dict\.json"):
        load(tmp_path, "train", variant="revos")
    with pytest.raises(ConfigError, match="unknown split of mevis 'tset'; known are valid, test, train, valid_u"):
        load(root, "tset", variant="mevis")
    edit(root / "video_datas/mevis/train/mask_dict.json", lambda masks: masks.pop("42"))
    with pytest.raises(DataError, match="b, expression 1: mask '42'"):
        load(root, "train", variant="mevis")


def test_frames_left_to_chance_cover_the_video(root):
    dataset = load(root, "train", variant="mevis")
    counts = np.bincount([n for index in range(40) for n in dataset.get(0, rng_for(0, 0, index)).frames], minlength=8)
    assert counts.min() > 10
