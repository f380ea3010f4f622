"""Conversations about images and videos."""

import layouts
import numpy as np
import pytest
from layouts import answers, questions

from segue.data import image_chat, video_chat
from segue.data.base import rng_for
from segue.data.dialogue import recorded_turns
from segue.errors import ConfigError, DataError, MediaError
from segue.types import Media


def said(*turns):
    roles = {"h": "human", "g": "gpt", "s": "system"}
    return [{"from": roles[turn[0]], "value": turn[1:]} for turn in turns]


@pytest.fixture
def make(tmp_path):
    def write(*rows):
        layouts.write_json(tmp_path / image_chat.CONVERSATIONS, list(rows))
        layouts.write_image(tmp_path / image_chat.IMAGES / "coco/train2017/1.jpg")
        return image_chat.load(tmp_path, "train")

    return write


@pytest.mark.parametrize(
    ("conversation", "turns"),
    [
        (said("hA", "gB ", "h C", "gD"), [("A", "B"), ("C", "D")]),
        (said("gDropped", "hA", "gB"), [("A", "B")]),
        (said("hA", "hB", "gC"), [("A\nB", "C")]),
        (said("hA", "gB", "hnever answered"), [("A", "B")]),
        ([], []),
    ],
)
def test_turns_are_read_as_they_were_meant(conversation, turns):
    assert recorded_turns(conversation) == turns


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        (said("hA", "gB", "gC"), "answer after an answer"),
        (said("sBe nice.", "hA", "gB"), "from 'system'"),
        ([{"value": "A"}], "no field 'from'"),
        ("A", "list of messages"),
    ],
)
def test_other_conversations_are_told(conversation, message):
    with pytest.raises(DataError, match=message):
        recorded_turns(conversation)


def test_the_image_stands_where_the_placeholder_was(make):
    dataset = make(
        {"id": "x1", "image": "coco/train2017/1.jpg", "conversations": said("h<image>\nWhat is it?", "gA bus.")},
        {"id": "x1", "image": "coco/train2017/1.jpg", "conversations": said("hWhat is it?\n<image>", "gA bus.")},
        {
            "id": "x1",
            "image": "coco/train2017/1.jpg",
            "conversations": said("hWhat is it?", "gA bus.", "hRed?", "gYes."),
        },
    )
    before, after, unsaid = (dataset.get(number, rng_for(0, 0, 0)) for number in range(3))
    assert [type(part) for part in before.messages[0].parts] == [Media, str]
    assert [type(part) for part in after.messages[0].parts] == [str, Media]
    assert before.messages[0].text == unsaid.messages[0].text == "\nWhat is it?"
    assert answers(unsaid) == ["A bus.", "Yes."]
    assert len({before.id, after.id, unsaid.id}) == 3
    assert (before.task, before.frames, before.regions) == ("chat", (0,), ())


@pytest.mark.parametrize("image", [{}, {"image": None}, {"image": ""}])
def test_text_alone_has_no_medium_and_no_frames(make, image):
    sample = make({"id": "t", **image, "conversations": said("hHello", "gHi")}).get(0, rng_for(0, 0, 0))
    assert sample.frames == ()
    assert sample.messages[0].parts == ("Hello",)


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"conversations": said("h<image>\nWhat?", "gA bus.")}, DataError),
        ({"image": "coco/train2017/1.jpg", "conversations": said("hA", "gB", "h<image> C", "gD")}, DataError),
        ({"image": "coco/train2017/1.jpg", "conversations": said("hA")}, DataError),
        ({"image": "coco/train2017/1.jpg", "conversations": said("hA", "gIt is [SEG].")}, DataError),
        ({"image": "coco/train2017/2.jpg", "conversations": said("hA", "gB")}, MediaError),
        ({"image": "../secret.jpg", "conversations": said("hA", "gB")}, MediaError),
        ({"image": "coco/train2017/1.jpg"}, DataError),
    ],
)
def test_rows_that_cannot_be_used_are_bad_samples(make, row, error):
    with pytest.raises(error, match="image_chat/train row 0"):
        make(row).get(0, rng_for(0, 0, 0))


def test_a_video_shows_one_frame_of_each_fifth_and_goes_first(tmp_path):
    rows = [{"id": "q", "video": "v.mkv", "conversations": said("h<video>\nDescribe it.", "gA clip.")}]
    layouts.write_json(tmp_path / video_chat.CONVERSATIONS, rows)
    layouts.write_frames(tmp_path / video_chat.VIDEOS / "v.mp4", 20)
    dataset = video_chat.load(tmp_path, "train")
    for index in range(20):
        sample = dataset.get(0, rng_for(0, 0, index))
        assert [frame // 4 for frame in sample.frames] == [0, 1, 2, 3, 4]
    assert sample.messages[0].text == "\nDescribe it."
    assert questions(sample) == ["Describe it."]
    assert video_chat.load(tmp_path, "train", frames=30).get(0, rng_for(0, 0, 0)).frames == tuple(range(20))


def test_frames_cover_videos_of_any_length():
    for count in (6, 7, 9, 23):
        drawn = [video_chat._one_of_each_part(np.random.default_rng(seed), count, 5) for seed in range(200)]
        assert {frame for frames in drawn for frame in frames} == set(range(count))
        assert all(list(frames) == sorted(set(frames)) for frames in drawn)


@pytest.mark.parametrize("module", [image_chat, video_chat])
def test_missing_files_and_other_splits_are_told(module, tmp_path):
    with pytest.raises(DataError, match=module.CONVERSATIONS):
        module.load(tmp_path, "train")
    with pytest.raises(ConfigError, match="known are train"):
        module.load(tmp_path, "val")
