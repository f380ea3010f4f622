"""`segue data synth`, as people and scripts see it."""

import json


def test_a_data_set_is_written_and_said_how_to_read(run_segue, tmp_path):
    words = ["data", "synth", tmp_path / "out", "--format", "coco", "--count", 2, "--size", "128x96"]
    run = run_segue(*words, "--json")
    assert json.loads(run.stdout) == {
        "output": str(tmp_path / "out"),
        "format": "coco",
        "kind": "scenes",
        "count": 2,
        "files": 3,
        "dataset": "folder",
        "options": {},
    }
    told = run_segue("data", "synth", tmp_path / "clips", "--format", "ref_vos", "--count", 1, "--size", "128x96")
    assert told.stdout.rstrip().endswith("1 clip, 10 files") and "variant='mevis'" in told.stderr
    assert "segue doctor" not in told.stderr, "it reads no such folder"


def test_what_is_there_is_left_and_a_wrong_size_is_one_line(run_segue, tmp_path):
    run = run_segue("data", "synth", tmp_path)
    assert run.exit_code == 2 and "there already" in run.stderr.replace("\n", " ")
    run = run_segue("data", "synth", tmp_path / "out", "--size", "small", "--json")
    assert run.exit_code == 2 and "WIDTHxHEIGHT" in run.stderr and json.loads(run.stdout)["kind"] == "ConfigError"


def test_the_group_without_a_command_says_what_there_is(run_segue):
    assert "synth" in run_segue("data", "--help").stdout
