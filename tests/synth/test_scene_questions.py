"""Questions of generated scenes, each a row of its own."""

import pytest

from segue.data.base import rng_for
from segue.datasets import DATASETS
from segue.errors import ConfigError
from segue.synth import scene


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
