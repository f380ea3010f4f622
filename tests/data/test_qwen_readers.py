"""Qwen-VL's dialogues and the seven tasks that come before them."""

import json

import layouts
import numpy as np
import pytest

from segue.data import pretraining, qwen_chat
from segue.data.base import rng_for
from segue.datasets import DATASETS
from segue.errors import ConfigError, DataError, MediaError
from segue.types import Media, Region


@pytest.fixture
def chat(tmp_path):
    """Writes one dialogue of turns by user and assistant in order, and reads it."""

    def read(*turns, first="user"):
        roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
        talk = [{"from": roles[place % 2], "value": text} for place, text in enumerate(turns)]
        layouts.write_json(tmp_path / "conversations.json", [{"id": "a", "conversations": talk}])
        layouts.write_image(tmp_path / "pictures/1.png")
        layouts.write_image(tmp_path / "2.png")
        return DATASETS["qwen_chat"](tmp_path, "train").get(0, rng_for(0, 0, 0))

    return read


def test_pictures_and_places_become_parts(chat):
    sample = chat(
        "Picture 1: <img>pictures/1.png</img>\nPicture 2: <img>2.png</img>\nIs "
        "<ref>the cat</ref><box>(0,0),(999,500)</box>"
        " <box>(1,2),(3,4)</box> or <ref>this</ref> here?",
        "Yes, <ref>it</ref><box>(1,2),(3,4)</box>.",
    )
    parts = sample.messages[0].parts
    assert [part.source.name if isinstance(part, Media) else type(part).__name__ for part in parts] == [
        *("1.png", "str", "2.png", "str", "Region", "str", "Region", "str", "Region", "str")
    ]
    assert [part for part in parts if isinstance(part, str)] == ["\n", "\nIs ", " ", " or ", " here?"]
    height, width = parts[2].size
    first, second, third = (part for part in parts if isinstance(part, Region))
    assert first.phrase == "the cat" and np.allclose(first.box, [0, 0, width, 500 / 999 * height])
    assert second.phrase == "" and (third.phrase, third.box) == ("this", None)
    assert sample.messages[1].parts == ("Yes, <ref>it</ref><box>(1,2),(3,4)</box>.",)


def test_an_answer_that_nobody_asked_for_is_dropped_at_the_beginning(chat):
    sample = chat("Hello!", "Who?", "I.", first="assistant")
    assert [(message.role, message.text) for message in sample.messages] == [("user", "Who?"), ("assistant", "I.")]


@pytest.mark.parametrize(
    ("question", "answer", "error", "problem"),
    [
        ("<img>2.png what?", "x", DataError, "without its </img>"),
        ("<img>http://x.org/a.png</img>", "x", DataError, "is an address"),
        ("<img>/etc/passwd</img>", "x", MediaError, "outside the data's folders"),
        ("<img>../../secret.png</img>", "x", MediaError, "outside the data's folders"),
        ("<img>gone.png</img>", "x", MediaError, "gone.png"),
        ("<box>(1,2),(3,4)</box>", "x", DataError, "on no picture"),
        ("<img>2.png</img><box>(1,2)</box>", "x", DataError, "not well formed"),
        ("hello", "<img>2.png</img>", DataError, "only users show pictures"),
    ],
)
def test_a_dialogue_that_cannot_be_used_says_why(chat, question, answer, error, problem):
    with pytest.raises(error, match=problem):
        chat(question, answer)


RECORDS = {
    "caption": {"image": "1.png", "text": "A cat."},
    "vqa": {"image": "1.png", "question": "What is it?", "answer": "cat"},
    "grounded_caption": {"image": "1.png", "text": "<ref>A cat</ref><box>(1,2),(3,4)</box>.", "language": "Chinese"},
    "refer": {"image": "1.png", "phrase": "cat", "boxes": [[0, 0, 5, 5], [1, 1, 2, 2]]},
    "describe_region": {"image": "1.png", "box": [0, 0, 5, 5], "text": "a cat."},
    "ocr": {"image": "1.png", "lines": [{"text": "Hi", "quad": [[0, 0], [5, 0], [5, 5], [0, 5]]}]},
    "text": {"text": "Once upon a time."},
}


@pytest.fixture
def pretrain(tmp_path):
    """Writes records as lines and reads the first."""

    def read(record):
        (tmp_path / "pretraining.jsonl").write_text(json.dumps(record), encoding="utf-8")
        layouts.write_image(tmp_path / "1.png")
        return DATASETS["pretraining"](tmp_path, "train").get(0, rng_for(0, 0, 0))

    return read


@pytest.mark.parametrize(
    ("task", "question", "answer"),
    [
        ("caption", ["Generate the caption in English:"], [" A cat."]),
        ("vqa", [" What is it? Answer:"], [" cat"]),
        (
            "grounded_caption",
            ["Generate the caption in Chinese with grounding:"],
            [" <ref>A cat</ref><box>(1,2),(3,4)</box>."],
        ),
        ("refer", ["cat"], [[0, 0, 5, 5], [1, 1, 2, 2]]),
        ("describe_region", ["This"], [" is a cat."]),
        ("ocr", ["OCR with grounding:"], ["Hi"]),
        ("text", [""], ["Once upon a time."]),
    ],
)
def test_the_seven_tasks(pretrain, task, question, answer):
    asked, said = pretrain({"task": task, **RECORDS[task]}).messages
    plain = [part for part in asked.parts if not isinstance(part, Media)]
    assert [part.phrase if isinstance(part, Region) else part for part in plain] == question
    assert [(part.phrase or part.box.tolist()) if isinstance(part, Region) else part for part in said.parts] == answer
    assert len(asked.parts) - len(plain) == (task != "text")


@pytest.mark.parametrize("task", RECORDS)
def test_a_record_with_anything_missing_is_told(pretrain, task):
    for lost in RECORDS[task]:
        if lost != "language":
            with pytest.raises(DataError, match=lost):
                pretrain({"task": task, **{key: value for key, value in RECORDS[task].items() if key != lost}})


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"task": "sing"}, "task = 'sing'; expected one of caption, vqa"),
        ({"task": "caption", "image": "", "text": "x"}, "name is ''"),
        ({"task": "caption", "image": "1.png", "text": "x", "language": ["English"]}, "language"),
        ({"task": "caption", "image": "1.png", "text": " "}, "empty"),
        ({"task": "caption", "image": "1.png", "text": "x", "language": "Latin"}, "Latin"),
        ({"task": "refer", "image": "1.png", "phrase": "x", "boxes": []}, "no box"),
        ({"task": "refer", "image": "1.png", "phrase": "x", "boxes": [[1, 2]]}, "form"),
        ({"task": "ocr", "image": "1.png", "lines": [{"text": "x", "quad": [[1, 2]]}]}, "form"),
    ],
)
def test_a_record_of_another_form_is_told(pretrain, record, problem):
    with pytest.raises((DataError, MediaError), match=problem):  # what `on_bad_sample: skip` leaves out
        pretrain(record)


def test_readers_are_for_training_alone(tmp_path):
    for module in (qwen_chat, pretraining):
        with pytest.raises(ConfigError, match="split"):
            module.load(tmp_path, "test")
