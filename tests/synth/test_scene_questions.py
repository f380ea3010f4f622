"""Questions of generated scenes, each a row of its own. As a script it prints how many there are about each scene."""

import sys

import PIL
import pytest

from segue.data.base import rng_for
from segue.datasets import DATASETS
from segue.errors import ConfigError, DataError
from segue.synth import questions, scene
from segue.synth.questions import count, recorded_counts

SPLITS, LENGTHS = ("test", "validation"), {"still": 100, "clip": 30}


def test_every_question_of_a_scene_is_a_row_about_one_medium(tmp_path):
    rows = DATASETS["scene_questions"](tmp_path, "test", stills=2, clips=1)
    samples = [rows.get(row, rng_for(0, 0, row)) for row in range(len(rows))]
    assert len({one.id for one in samples}) == len(rows) and len({one.group for one in samples}) == 3
    assert {rows.medium_of(row) for row in range(len(rows))} == {"still-0", "still-1", "clip-0"}
    for one in samples:
        first = next(other for other in samples if other.group == one.group)
        media = [next(part for part in each.messages[0].parts if not isinstance(part, str)) for each in (one, first)]
        assert media[0] is media[1]
    kinds = {
        kind: [one for one in samples if one.target["kind"] == kind] for kind in ("mask", "box", "region", "closed")
    }
    assert sum(map(len, kinds.values())) == len(rows) and len(kinds["box"]) <= 6 and len(kinds["region"]) == 2
    drawn = scene(0, 0, split="test")
    asked = [one for one in kinds["mask"] if one.group == drawn.group]
    assert [len(one.regions) for one in asked] == [len(phrase.objects) for phrase in drawn.phrases]
    assert asked[0].messages[0].text == f"\nPlease segment {drawn.phrases[0].words['en']} in this image."
    with pytest.raises(ConfigError, match="no split 'val'"):
        DATASETS["scene_questions"](tmp_path, "val")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("form", "some"), [("still", (0, 14, 57, 99)), ("clip", (3, 29))])
def test_recorded_counts_are_those_of_scenes_as_they_are_drawn(split, form, some):
    recorded = recorded_counts()[f"{split} {form}"]
    assert len(recorded) == LENGTHS[form]
    assert [recorded[index] for index in some] == [count(form, index, split) for index in some]


@pytest.mark.slow
def test_every_recorded_count_is_that_of_its_scene():
    assert recorded_counts() == counted()


def test_another_pillow_counts_anew(monkeypatch):
    recorded_counts.cache_clear()
    monkeypatch.setattr(PIL, "__version__", "0")
    assert recorded_counts() == {}
    recorded_counts.cache_clear()


def test_a_scene_that_is_drawn_with_other_questions_than_were_counted_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("segue.synth.questions.recorded_counts", lambda: {"test still": (3,)})
    questions._of_scene.cache_clear()
    rows = DATASETS["scene_questions"](tmp_path, "test", stills=1, clips=0)
    assert len(rows) == 3
    with pytest.raises(DataError, match="still 0 of test is drawn with 27 questions here, 3 elsewhere"):
        rows.get(0, rng_for(0, 0, 0))


def counted() -> dict[str, tuple[int, ...]]:
    return {
        f"{split} {form}": tuple(count(form, index, split) for index in range(length))
        for split in SPLITS
        for form, length in LENGTHS.items()
    }


if __name__ == "__main__":
    lines = [
        "# How many questions there are about each scene, so that none is drawn to count them; tests draw them.",
        "# python tests/synth/test_scene_questions.py > src/segue/synth/question_counts.txt",
        f"pillow: {PIL.__version__}",
        *(f"{name}: {' '.join(map(str, counts))}" for name, counts in counted().items()),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
