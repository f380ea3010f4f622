import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from segue.checkpoints import random_weights
from segue.cli.main import application


@pytest.fixture
def run_segue():
    """Runs `segue ...` in this process, with the real engine to find the model."""
    return lambda *arguments: CliRunner().invoke(application(), list(arguments), catch_exceptions=False)


@pytest.fixture
def folder(tmp_path):
    return random_weights.random_checkpoint(tmp_path / "tiny")


def spoil(folder, **tensors):
    save_file({**load_file(folder / "model.safetensors"), **tensors}, folder / "model.safetensors")


def test_people_get_a_table_that_fits_80_columns_and_a_verdict(run_segue, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run = run_segue("inspect", str(folder))
    assert run.exit_code == 0
    lines = run.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("Complete") and any(line.split()[:2] == ["vision", "tower"] for line in lines)
    assert "tiny: InternViT 64 wide, 3 deep" in run.stdout and "policy upstream" in run.stdout


def test_a_long_lineage_makes_no_line_of_a_pipe_long(run_segue, folder):
    parts = {name: {"steps": 1000 + number, "scenes": 13100} for number, name in enumerate("abcdefghij")}
    (folder / "lineage.json").write_text(json.dumps({"model_hash": "ff8b", "made_from": {"parts": parts}}))
    run = run_segue("inspect", str(folder))
    assert "j: {steps: 1009, scenes: 13100}" in run.stdout
    assert max(map(len, run.stdout.splitlines())) <= 120


def test_machines_get_all_of_it_as_one_object(run_segue, folder):
    run = run_segue("inspect", str(folder), "--json")
    found = json.loads(run.stdout)
    assert run.exit_code == 0 and found["usable"] is True and found["problems"] == []
    assert (found["architecture"], found["family"], found["rows"]) == ("tiny", "internvl", 273)
    assert sum(part["parameters"] for part in found["components"]) == found["parameters"]


def test_a_folder_that_does_not_fit_is_shown_with_every_problem_and_exit_2(run_segue, folder):
    spoil(folder, stray=torch.zeros(3))
    run = run_segue("inspect", str(folder))
    assert run.exit_code == 2
    assert "cannot be used as it is" in run.stdout and "\n  unexpected: stray [3]\n" in run.stdout
    assert json.loads(run_segue("inspect", str(folder), "--json").stdout)["usable"] is False


@pytest.mark.parametrize("command", ["inspect", "doctor"])
def test_a_model_that_is_nowhere_is_one_line_and_exit_2(run_segue, tmp_path, command):
    run = run_segue(command, str(tmp_path / "nowhere"))
    assert run.exit_code == 2 and run.stdout == ""
    assert run.stderr.startswith("error: there is no folder") and run.stderr.count("\n") == 1


def test_doctor_reads_every_tensor_and_says_that_a_model_is_sound(run_segue, folder):
    run = run_segue("doctor", str(folder))
    assert run.exit_code == 0
    assert "427 read, all numbers finite" in run.stdout and run.stdout.rstrip().endswith("This model is sound.")


def test_doctor_names_the_tensors_with_bad_numbers(run_segue, folder):
    spoil(folder, **{"mlp1.1.bias": torch.full((128,), torch.nan), "mlp1.3.weight": torch.zeros(128, 128)})
    run = run_segue("doctor", str(folder), "--json")
    found = json.loads(run.stdout)
    assert run.exit_code == 2 and found["usable"] is False
    assert [check for check in found["checks"] if check["name"] == "tensors"] == [
        {"name": "tensors", "status": "problem", "value": "mlp1.1.bias: 128 of 128 numbers are NaN or infinite"},
        {"name": "tensors", "status": "note", "value": "mlp1.3.weight: all zeros"},
    ]


def test_doctor_notes_what_is_never_used(run_segue, folder):
    for name in ("modeling.py", "optimizer.pt", "generation_config.json"):
        (folder / name).write_text("{}")
    checks = {check["name"]: check for check in json.loads(run_segue("doctor", str(folder), "--json").stdout)["checks"]}
    assert {name: checks[name]["status"] for name in ("code", "pickles", "generation")} == dict.fromkeys(
        ("code", "pickles", "generation"), "note"
    )
    assert "modeling.py, auto_map in config.json: never executed" in checks["code"]["value"]


def test_doctor_says_what_is_wrong_with_a_folder_that_does_not_fit(run_segue, folder):
    (folder / "tokenizer.json").unlink()
    run = run_segue("doctor", str(folder))
    assert run.exit_code == 2
    assert "no tokenizer" in run.stdout and "cannot be used as it is" in run.stdout
