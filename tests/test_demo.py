import json

import numpy as np
import pytest

import segue
from segue import demo
from segue.checkpoints.locate import DEMO_FOLDER
from segue.media import open_media, read_frames, read_image
from segue.synth import scene
from segue.synth.meaning import Noun, Query


@pytest.fixture(scope="module")
def engine():
    return segue.load("demo", device="cpu")


@pytest.fixture(scope="module")
def asked():
    return demo.challenges(4)


def test_the_model_that_ships_is_small_and_says_how_it_was_made():
    assert sum(path.stat().st_size for path in DEMO_FOLDER.iterdir()) <= 24e6
    card = (DEMO_FOLDER / "README.md").read_text(encoding="utf-8")
    assert "drawn scenes only" in card and "segue evaluate demo --on scenes_test" in card
    assert not json.loads((DEMO_FOLDER / "lineage.json").read_text(encoding="utf-8")).get("random")


def test_the_model_finds_more_than_chance_would(engine):
    """Not how good it is, which the model card says, but that it is the trained one."""
    options, scores = segue.Options(prefill="Sure, it is [SEG]."), []
    for number in range(12):
        drawn = scene(0, number, split="validation", size=(160, 160), things=(2, 3))
        phrase = next((one for one in drawn.phrases if len(one.objects) == 1 and one.kind == "attribute"), None)
        if phrase is None:
            continue
        answer = engine.ask(drawn.media, f"Please segment {phrase.words['en']}.", options=options)
        found = answer.regions[0].masks.dense(0)[None]
        scores.append(demo.Challenge("scene", drawn, (phrase,)).score(phrase, found))
    assert np.mean(scores) > 0.15


def test_challenges_ask_for_every_kind_of_thing_by_the_written_rule(asked):
    still, moving = asked
    thing, attribute, relation, missing = still.phrases
    assert thing.query == Query(Noun(kind=thing.query.noun.kind))
    assert (attribute.kind, relation.kind, missing.kind) == ("attribute", "relation", "attribute")
    assert [phrase.kind in ("attribute", "motion", "event") for phrase in moving.phrases] == [True, True]
    for challenge in asked:
        present = [phrase.objects for phrase in challenge.phrases if phrase.objects]
        assert len(set(present)) == len(present) and {len(things) for things in present} == {1}
        assert "-test-" in challenge.scene.group
    assert missing.objects == ()


def test_the_first_scene_that_fits_is_taken(asked):
    number = int(asked[0].scene.group.split("-")[3])
    before = [scene(4, index, split="test", size=demo.SCENE_SIZE, things=(4, 6)) for index in range(number)]
    asks = tuple(demo.STILL_ASKS.values())
    assert all(demo._chosen(drawn.phrases, asks) is None for drawn in before)


def test_challenges_follow_from_the_seed(asked):
    again = demo.challenges(4)
    assert [challenge.scene.frames.tobytes() for challenge in again] == [
        challenge.scene.frames.tobytes() for challenge in asked
    ]
    assert demo.challenges(5)[0].scene.frames.tobytes() != asked[0].scene.frames.tobytes()


def test_a_perfect_answer_scores_one_and_none_at_all_scores_zero(asked):
    for challenge in asked:
        nothing = np.zeros(challenge.scene.frames.shape[:3], dtype=bool)
        for phrase in challenge.phrases:
            assert challenge.score(phrase, challenge.truth(phrase)) == 1
            if not phrase.objects:
                assert challenge.score(phrase, nothing) == 1
                assert challenge.score(phrase, ~nothing) == 0
            elif challenge.truth(phrase).any(axis=(1, 2)).all():
                assert challenge.score(phrase, nothing) == 0


def test_half_of_a_thing_scores_half(asked):
    challenge = asked[0]
    truth = challenge.truth(challenge.phrases[0])
    columns = np.flatnonzero(truth[0].any(axis=0))
    half = truth.copy()
    half[:, :, columns[len(columns) // 2] :] = False
    assert challenge.score(challenge.phrases[0], half) == pytest.approx(half.sum() / truth.sum())


def test_what_is_written_can_be_opened_again(asked, tmp_path):
    still, moving = (challenge.write(tmp_path) for challenge in asked)
    assert np.array_equal(read_image(open_media(still)), asked[0].scene.frames[0])
    opened = open_media(moving)
    assert (opened.kind, opened.count) == ("video", demo.CLIP_FRAMES)
    assert np.array_equal(read_frames(opened, [3]).pixels[0], asked[1].scene.frames[3])


def test_truth_and_answer_stand_side_by_side(asked, tmp_path):
    height, width = demo.SCENE_SIZE
    words = asked[0].phrases[0].words["en"]
    still, moving = (challenge.compare({}, tmp_path) for challenge in asked)
    nothing = read_image(open_media(still))
    truth = asked[0].truth(asked[0].phrases[0])
    asked[0].compare({words: truth}, tmp_path)
    found = read_image(open_media(still))
    assert nothing.shape[0] > height and nothing.shape[1] > 2 * width
    changed = (found != nothing).any(axis=2)
    assert not changed[:, :width].any(where=np.arange(len(changed))[:, None] < height)
    assert changed.sum() > truth.sum()
    assert open_media(moving).count == demo.CLIP_FRAMES
