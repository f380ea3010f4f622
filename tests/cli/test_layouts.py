"""`segue doctor DATA` on data of benchmarks, as people and scripts see it."""

import json

import pytest
from PIL import Image

from segue.evals import benchmarks
from segue.evals.base import Benchmark


def record(name, files, **fields):
    return Benchmark(
        **{"dataset": "scenes", "split": "test", "options": {"count": 7}, **fields},
        name=name,
        task="segment",
        score=lambda sample, answer: {},
        reduce=lambda rows: {},
        headline="j",
        protocol="test/1",
        files=files,
    )


@pytest.fixture
def table(monkeypatch):
    """Three benchmarks in the place of all, two of which need the same files."""
    clips = ("clips/meta_expressions.json", "clips/frames")
    ones = [record("clips_val", clips), record("clips_again", clips), record("faces", ("faces/a.json",))]
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {one.name: one for one in ones})
    return benchmarks.BENCHMARKS


@pytest.fixture
def data(tmp_path):
    def write(*paths):
        for path in paths:
            (tmp_path / "root" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "root" / path).write_text("{}")
        return tmp_path / "root"

    return write


def test_data_of_benchmarks_are_known_and_told_to_be_ready(run_segue, table, data):
    run = run_segue("doctor", data("clips/meta_expressions.json", "clips/frames/0.jpg"))
    assert run.exit_code == 0
    assert "ready  clips_val, clips_again\n" in run.stdout and "All are ready." in run.stdout
    assert "Nothing is here of 1 other benchmark; `--on NAME` tells what one of them needs." in run.stderr


def test_what_is_misspelt_and_missing_is_told_and_is_exit_2(run_segue, table, data):
    run = run_segue("doctor", data("clips/meta_expression.json", "faces/a.json"))
    assert run.exit_code == 2
    assert "not ready  clips_val, clips_again\n" in run.stdout and "ready  faces\n" in run.stdout
    nearest = "the nearest name is clips/meta_expression.json: rename or link it"
    assert f"    there is no clips/meta_expressions.json; {nearest}\n" in run.stdout
    assert "    there is no clips/frames\n" in run.stdout
    assert "1 of 3 are ready." in run.stdout


def test_scripts_get_what_is_lacking_as_json(run_segue, table, data):
    root = data("clips/meta_expression.json", "faces/a.json")
    run = run_segue("doctor", root, "--json")
    told = json.loads(run.stdout)
    assert run.exit_code == 2 and (told["usable"], told["absent"]) == (False, [])
    first, _, third = told["benchmarks"]
    assert (first["name"], first["ready"], first["findings"][0]["empty"]) == ("clips_val", False, False)
    assert first["findings"][0]["found"] == "clips/meta_expression.json"
    assert third == {"name": "faces", "ready": True, "findings": []}


def test_named_benchmarks_are_checked_though_nothing_is_there_and_their_rows_are_opened(run_segue, table, data):
    root = data("faces/a.json")
    run = run_segue("doctor", root, "--on", "faces, clips_val")
    assert run.exit_code == 2
    assert "ready  faces, 7 rows\n" in run.stdout
    assert "not ready  clips_val\n    there is no clips/meta_expressions.json\n" in run.stdout
    assert run_segue("doctor", root, "--on", "faces").exit_code == 0


def test_files_that_cannot_be_read_are_not_ready(run_segue, table, data):
    table["faces"] = record("faces", ("faces/a.json",), dataset="refcoco", split="val", options={})
    run = run_segue("doctor", data("faces/a.json"), "--on", "faces")
    assert run.exit_code == 2 and "not ready  faces\n    below " in run.stdout
    told = json.loads(run_segue("doctor", data("faces/a.json"), "--on", "faces", "--json").stdout)
    assert told["usable"] is False and told["benchmarks"][0]["error"].startswith("below ")


def test_an_unknown_benchmark_is_a_user_error(run_segue, table, data):
    run = run_segue("doctor", data("faces/a.json"), "--on", "face")
    assert run.exit_code == 2 and "unknown benchmark 'face'; did you mean 'faces'? Known: clips_val" in run.stderr
    run = run_segue("doctor", "env", "--on", "faces")
    assert run.exit_code == 2 and "--on mean nothing here" in run.stderr


def test_ones_own_folder_stays_ones_own(run_segue, table, tmp_path):
    (tmp_path / "my/images").mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(tmp_path / "my/images/0.png")
    items = [{"image": "0.png", "mask": [[[4, 4, 20, 4, 20, 20, 4, 20]]], "text": ["cup"], "split": "train"}]
    (tmp_path / "my/annotations.json").write_text(json.dumps(items))
    run = run_segue("doctor", tmp_path / "my", "-o", tmp_path / "out")
    assert run.exit_code == 0 and "1 row (1 train)" in run.stdout


def test_a_folder_of_neither_says_so(run_segue, table, tmp_path):
    run = run_segue("doctor", tmp_path)
    assert run.exit_code == 2
    assert "neither a model folder" in run.stderr and "nor laid out for a benchmark" in run.stderr
