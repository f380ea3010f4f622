"""`segue segment --shard`: several machines on one run give what one gives, none of it missing or twice."""

from pathlib import Path

import pytest
from pictures import content, make_image

from segue.files import alone


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three pictures and a letter, two of them of one name."""
    folder = tmp_path / "photos"
    for number in range(3):
        make_image(folder / f"{number}.png", shift=3 * number)
    (folder / "1.jpg").write_text("I am a letter, not a picture.")
    return folder


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def segment(run_segue, photos, out):
    """Runs `segue segment` over the photos with more arguments, into OUT unless told."""
    return lambda *more, into=out: run_segue("segment", photos, "bright", "-o", into, *more)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_shards_are_one_run_file_for_file(segment, out, tmp_path, order):
    assert segment(into=tmp_path / "whole").exit_code == 2
    first, last = (segment("--shard", f"{number}/2") for number in order)
    assert "2 of 4 inputs are other shards' work" in first.stderr and "manifest.jsonl" not in first.stderr
    assert "all shards are done: 4 inputs listed, none missing, none twice" in last.stderr
    assert {first.exit_code, last.exit_code} == {0, 2}, "the letter is in one of them"
    assert content(out) == content(tmp_path / "whole")


def test_a_shard_done_before_is_left_alone_and_costs_no_model(segment, out, fake, json_lines):
    for number in (0, 1, 0, 1):
        run = segment("--shard", f"{number}/2", "--json")
    assert [record["status"] for record in json_lines(run.stdout)] == ["failed", "ok"]
    assert json_lines(run.stdout)[1]["skipped"] and fake.Engine.loads == 2
    assert not list(out.glob("manifest-*"))


def test_a_run_goes_on_in_another_number_of_shards_or_without(segment, out, tmp_path):
    segment(into=tmp_path / "whole")
    segment("--shard", "0/3")
    segment("--shard", "1/2")
    assert "2 done, 2 done before" not in segment().stderr  # the letter is tried again
    assert content(out).keys() == content(tmp_path / "whole").keys()


def test_of_an_input_that_changed_and_was_done_in_two_shards_the_result_that_is_there_is_listed(
    segment, photos, out, json_lines
):
    segment("--shard", "0/3")
    make_image(photos / "0.png", shift=20)
    for number in (0, 1):
        segment("--shard", f"{number}/2")
    record = json_lines((out / "manifest.jsonl").read_text())[0]
    assert record["folder"] == "0" and record["regions"][0]["box"][0] == 20


@pytest.mark.parametrize("change", ["another input", "another threshold"])
def test_shards_of_different_runs_are_refused(segment, photos, out, change):
    segment("--shard", "0/2")
    before = content(out)
    if change == "another input":
        make_image(photos / "0a.png")
    run = segment("--shard", "1/2", *([] if change == "another input" else ["--threshold", 0.4]))
    assert run.exit_code == 2 and "give every shard the same" in run.stderr
    assert content(out) == before


def test_a_shard_leaves_half_written_work_of_others_alone_and_the_merge_removes_it(segment, out):
    segment("--shard", "0/2")
    half = out / ".segue-0123456789ab"
    half.mkdir()
    (half / "result.json").write_text("{")
    segment("--shard", "0/2")
    assert half.is_dir()
    segment("--shard", "1/2")
    assert not half.exists()


def test_what_a_killed_shard_had_finished_and_not_listed_is_listed(segment, out, tmp_path):
    segment(into=tmp_path / "whole")
    segment("--shard", "0/2")
    (listed,) = out.glob("manifest-0-of-2-*")
    listed.write_bytes(listed.read_bytes().splitlines(keepends=True)[0])
    for number in (0, 1):
        segment("--shard", f"{number}/2")
    assert content(out) == content(tmp_path / "whole")


def test_two_processes_on_one_shard_are_refused_and_a_merge_waits_for_the_last(segment, out):
    segment("--shard", "0/2")
    (listed,) = out.glob("manifest-0-of-2-*")
    with alone(listed):
        assert "another run is writing" in segment("--shard", "0/2").stderr
        assert "another run is writing" in segment("--shard", "0/3").stderr
    with alone(out, shared=True):
        last = segment("--shard", "1/2")
    assert "all shards" not in last.stderr and len(list(out.glob("manifest-*-of-2-*"))) == 2
    assert "all shards are done" in segment("--shard", "1/2").stderr


@pytest.mark.parametrize("shard", ["2/2", "1", "a/b", "0/0", "-1/2"])
def test_a_shard_is_one_of_several(segment, out, shard):
    run = segment(f"--shard={shard}")
    assert run.exit_code == 2 and "is no shard" in run.stderr
    assert not out.exists()
