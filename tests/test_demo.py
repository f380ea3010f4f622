import json

import numpy as np
import pytest

import segue
from segue import demo
from segue.checkpoints.locate import DEMO_FOLDER
from segue.media import open_media, read_frames, read_image
from segue.synth import scene


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


def test_challenges_ask_for_different_things_and_for_one_that_is_not_there(asked):
    assert [challenge.name for challenge in asked] == ["scene", "clip"]
    for challenge in asked:
        *present, absent = challenge.phrases
        things = [phrase.objects[0] for phrase in present]
        assert 2 <= len(things) == len(set(things)) <= 3
        assert absent.objects == ()
        assert ".train-" not in challenge.scene.group and "-test-" in challenge.scene.group


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


def test_the_truth_is_written_to_look_at(asked, tmp_path):
    still, moving = (challenge.write_truth(tmp_path) for challenge in asked)
    drawn = read_image(open_media(still))
    shown = asked[0].truth(asked[0].phrases[0])[0]
    assert (drawn != asked[0].scene.frames[0]).any(axis=2)[shown].mean() > 0.9
    assert (open_media(moving).count, open_media(moving).size) == (demo.CLIP_FRAMES, demo.CLIP_SIZE)
