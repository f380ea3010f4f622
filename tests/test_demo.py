import errno
from pathlib import Path

import numpy as np
import pytest

from segue import demo
from segue.errors import CheckpointError, ConfigError
from segue.grounding import official
from segue.media import open_media, read_frames, read_image


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def makes(monkeypatch):
    """Stands in for the making of a model: writes one small file, and counts."""
    made = []

    def random_checkpoint(folder: Path, name: str = "tiny", *, seed: int = 0) -> Path:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        made.append(folder)
        return folder

    monkeypatch.setattr(official, "random_checkpoint", random_checkpoint)
    return made


@pytest.fixture(scope="module")
def asked():
    return demo.challenges(4)


def test_the_model_is_made_once_and_then_found(cache, makes):
    first = demo.model_folder()
    assert (first / "config.json").is_file() and first.parent == cache
    assert demo.model_folder() == first
    assert len(makes) == 1


def test_nothing_but_the_model_is_left_in_the_cache(cache, makes):
    folder = demo.model_folder()
    assert list(cache.iterdir()) == [folder]


def test_of_two_processes_the_slower_takes_what_the_quicker_made(cache, makes, monkeypatch):
    slow = official.random_checkpoint
    won = []

    def overtaken(folder: Path) -> Path:
        if not won:
            won.append(True)
            demo.model_folder()
        return slow(folder)

    monkeypatch.setattr(official, "random_checkpoint", overtaken)
    folder = demo.model_folder()
    assert len(makes) == 2 and list(cache.iterdir()) == [folder]
    assert (folder / "config.json").read_text() == "{}"


def test_a_making_that_fails_leaves_nothing_behind(cache, monkeypatch):
    def full(folder: Path) -> Path:
        folder.mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(official, "random_checkpoint", full)
    with pytest.raises(CheckpointError, match="No space left on device; set SEGUE_CACHE"):
        demo.model_folder()
    assert list(cache.iterdir()) == []


def test_a_cache_that_is_a_file_is_one_clear_error(tmp_path, monkeypatch, makes):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="set SEGUE_CACHE"):
        demo.model_folder()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SEGUE_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/segue"),
        ({"HOME": "/home/someone"}, "/home/someone/.cache/segue"),
    ],
)
def test_the_cache_lies_where_the_user_wants_it(monkeypatch, variables, expected):
    for name in ("SEGUE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert demo.cache_folder() == Path(expected)


def test_without_a_home_the_cache_must_be_named(monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("SEGUE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigError, match="set SEGUE_CACHE"):
        demo.cache_folder()


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
