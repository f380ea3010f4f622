import json
from functools import cache

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from segue import demo
from segue.cli import segment
from segue.geometry.masks import box_of, track
from segue.media import open_media
from segue.types import Answer, Finished, FrameMasks, ObjectsFound, Region

challenges = cache(demo.challenges)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small scenes, and each drawn once for all tests."""
    monkeypatch.setattr(demo, "SCENE_SIZE", (96, 128))
    monkeypatch.setattr(demo, "CLIP_SIZE", (72, 96))
    monkeypatch.setattr(demo, "CLIP_FRAMES", 5)
    monkeypatch.setattr(demo, "challenges", challenges)


@pytest.fixture
def knowing(fake, monkeypatch):
    """An engine that knows the truth of the demo's scenes of seed 4, and says there is nothing where there is not."""
    known = {challenge.scene.size: challenge for challenge in demo.challenges(4)}

    def segment(self, media, phrases, options):
        challenge = known[media.size]
        meant = {phrase.words["en"]: phrase for phrase in challenge.phrases}
        assert list(phrases) == list(meant)
        found = [words for words in phrases if meant[words].objects]
        masks = np.stack([challenge.truth(meant[words]) for words in found])
        yield ObjectsFound(media, tuple(Region(words) for words in found))
        for index, frame in enumerate(challenge.scene.frames):
            yield FrameMasks(index, 0.1 * index, frame, masks[:, index], np.ones(len(found)), np.ones(len(found)))
        frames = np.arange(media.count)
        regions = [
            Region(words, None, box_of(mask[0]), track(mask, frames), 0.9)
            for words, mask in zip(found, masks, strict=True)
        ]
        yield Finished(Answer("It is.", tuple(regions), media=media))

    monkeypatch.setattr(fake.Engine, "stream_segment", segment)
    return fake


def test_a_model_that_knows_the_truth_scores_one_everywhere(knowing, run_segue, tmp_path):
    result = run_segue("demo", "-o", tmp_path, "--seed", 4, "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 0 and told["mean_iou"] == 1
    assert {line["iou"] for line in told["answers"]} == {1.0}
    assert [line["found"] for line in told["answers"]] == [line["meant"] for line in told["answers"]]


def test_a_model_that_finds_nothing_is_right_only_where_nothing_is(run_segue, tmp_path):
    told = json.loads(run_segue("demo", "-o", tmp_path, "--seed", 4, "--json").stdout)
    assert told["seed"] == 4
    for line in told["answers"]:
        assert line["found"] == 0
        assert line["iou"] == 1 if not line["meant"] else line["iou"] < 0.7
        assert not line["weak"]
    assert {line["input"] for line in told["answers"]} == {"scene", "clip"}


def test_results_and_truth_lie_side_by_side(knowing, run_segue, tmp_path):
    out = tmp_path / "out"
    result = run_segue("demo", "-o", out, "--seed", 4)
    assert result.exit_code == 0
    made = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {"scene/overlay.png", "scene/masks/00000.png", "scene/masks.json", "scene/result.json"} <= made
    assert {"clip/overlay.mp4", "clip/masks/00004.png", "compared/scene.png", "compared/clip.mp4"} <= made
    assert {"input/scene.png", "input/clip/00000.png", "manifest.jsonl"} <= made
    assert open_media(out / "clip" / "overlay.mp4").count == demo.CLIP_FRAMES


def test_the_table_shows_phrases_and_where_to_look(knowing, run_segue, tmp_path):
    result = run_segue("demo", "-o", tmp_path, "--seed", 4)
    for challenge in demo.challenges(4):
        for phrase in challenge.phrases:
            assert phrase.words["en"] in result.stdout
    assert "1.00" in result.stdout and "compared/clip.mp4" in result.stdout.replace("\n", "")


def test_things_of_low_scores_are_told_as_probably_not_there(knowing, run_segue, tmp_path, monkeypatch):
    assert "probably" not in run_segue("demo", "-o", tmp_path, "--seed", 4).stdout
    monkeypatch.setattr(segment, "WEAK", 0.95)
    assert run_segue("demo", "-o", tmp_path, "--seed", 4).stdout.count("probably") == 5


def test_without_a_seed_every_run_has_new_ones_and_says_which(run_segue, tmp_path):
    seeds = {json.loads(run_segue("demo", "-o", tmp_path / name, "--json").stdout)["seed"] for name in "ab"}
    assert len(seeds) == 2


def test_a_second_run_into_the_same_folder_replaces_the_first(knowing, run_segue, tmp_path):
    for _ in range(2):
        assert run_segue("demo", "-o", tmp_path, "--seed", 4).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "compared", "input", "manifest.jsonl", "scene"]


def test_a_model_that_cannot_be_loaded_is_one_line_and_exit_code_2(run_segue, tmp_path):
    result = run_segue("demo", "-o", tmp_path, "--seed", 4, "--model", "fake/broken")
    assert result.exit_code == 2 and "broken lacks the tensor" in result.stderr
    assert not (tmp_path / "scene").exists()


@pytest.mark.parametrize("taken", ["out", "out/input"])
def test_a_file_where_a_folder_should_be_is_one_line(run_segue, tmp_path, taken):
    (tmp_path / taken).parent.mkdir(exist_ok=True)
    (tmp_path / taken).write_text("")
    result = run_segue("demo", "-o", tmp_path / "out", "--seed", 4)
    assert result.exit_code == 2
    assert "is a file; -o takes a folder" in result.stderr.replace("\n", " ")


def test_a_tiny_random_model_goes_all_the_way(official_folder, tmp_path):
    from segue.cli.main import application

    options = ["--seed", "4", "--model", str(official_folder), "--device", "cpu", "--json"]
    # The shape checker hides from torch that the engine's methods are generators, and so undoes their no_grad.
    with torch.no_grad():
        result = CliRunner().invoke(application(), ["demo", "-o", str(tmp_path), *options], catch_exceptions=False)
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert {line["found"] for line in told["answers"]} == {1} and told["mean_iou"] < 0.5
    assert (tmp_path / "clip" / "overlay.mp4").is_file()
