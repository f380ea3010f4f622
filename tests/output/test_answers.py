import json

import numpy as np
import pytest

from segue.errors import ConfigError, DataError
from segue.media import open_media
from segue.output.answers import Answer
from segue.output.export import write_png
from segue.types import MaskTrack, Region, TokenScore, Usage

TRACK = MaskTrack((3, 6), np.array([7, 9]), ("639", "b0"))
REGION = Region(
    "a star",
    (3, 9),
    np.array([1 / 3, 0, 3, 6]),
    TRACK,
    0.1,
    np.array([0.1, 0.2]),
    np.array([1.0, 0.5]),
    np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]),
)


@pytest.fixture
def answer(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((3, 6, 3), np.uint8))
    usage = Usage(3, 2, 1, 0, {"language": 0.25})
    media, scores = open_media(tmp_path / "a.png"), (TokenScore("It", -0.5, (("It", -0.5), ("A", -2.0))),)
    return Answer("It is.", (REGION, Region()), "It is.<e>", media, usage, "length", {"x": [1]}, scores)


@pytest.mark.parametrize("name", ["a.png/x", "a.png/x/y", "a\0b"])
def test_a_folder_that_cannot_be_made_is_refused(answer, tmp_path, name):
    with pytest.raises(ConfigError, match="cannot be made: .*(a.png is no folder|NUL)"):
        answer.save(tmp_path / name)


@pytest.mark.parametrize(
    ("formats", "told"),
    [
        ("png", r"formats are a list, and 'png' is text; write \['png'\]"),
        (["png", "logits"], r"made without its logits; ask with Options\(keep_logits=True\), or leave logits out"),
    ],
)
def test_formats_that_cannot_be_written_are_refused(answer, tmp_path, formats, told):
    with pytest.raises(ConfigError, match=told):
        answer.save(tmp_path / "out", formats)
    assert not (tmp_path / "out").exists()


def test_an_answer_comes_back_from_json_as_it_was(answer):
    assert Answer.from_dict(json.loads(json.dumps(answer.to_dict()))) == answer


def test_a_medium_without_a_file_does_not_come_back(answer):
    shown = Answer("x", media=open_media(np.zeros((3, 6, 3), np.uint8)))
    stored = json.loads(json.dumps(shown.to_dict()))
    assert stored["media"]["path"] is None and Answer.from_dict(stored) == Answer("x")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda stored: stored.pop("text"),
        lambda stored: stored.update(regions=[{}]),
        lambda stored: stored["regions"][0]["masks"].update(size=[3]),
        lambda stored: stored.update(usage={"gold": 1}),
        lambda stored: stored.update(regions=5),
    ],
)
def test_what_has_another_form_is_refused(answer, spoil):
    stored = answer.to_dict()
    spoil(stored)
    with pytest.raises(DataError, match="does not have its form"):
        Answer.from_dict(stored)
