import json

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from segue.cli.main import application
from segue.weights import read_json


@pytest.fixture
def run_segue():
    """Runs `segue ...` in this process, with the real engine to find the model."""
    return lambda *arguments: CliRunner().invoke(application(), list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture
def checkpoint(official_folder, tmp_path):
    """A training file with a mask decoder alone."""
    tensors = load_file(official_folder / "model.safetensors")
    state = {name: tensor + 1 for name, tensor in tensors.items() if ".sam_mask_decoder." in name}
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "iter_5.pth")
    return tmp_path / "iter_5.pth"


def test_an_official_folder_comes_in_and_goes_out(run_segue, official_folder, tmp_path):
    assert run_segue("convert", "import", official_folder, tmp_path / "ours").exit_code == 0
    run = run_segue("convert", "export", tmp_path / "ours", tmp_path / "official", "--dtype", "fp16", "--json")
    found = json.loads(run.stdout)
    assert found["folder"] == str(tmp_path / "official") and found["made_from"]["dtype"] == "fp16"
    assert read_json(tmp_path / "official" / "config.json")["torch_dtype"] == "float16"


def test_people_get_the_account_of_a_training_file_on_one_screen(run_segue, official_folder, checkpoint, tmp_path):
    run = run_segue("convert", "import", checkpoint, tmp_path / "out", "--base", official_folder)
    assert run.exit_code == 0
    lines = run.stdout.splitlines()
    assert len(lines) < 25 and max(map(len, lines)) <= 80
    assert next(line for line in lines if "mask_decoder" in line).split() == [
        *("mask_decoder", "131", "0", "0", "0", "43,181", "100.0%")
    ]
    assert "note: language: nothing of it in the file" in run.stderr and "is written" in run.stderr


def test_machines_get_the_account_as_one_object(run_segue, official_folder, checkpoint, tmp_path):
    run = run_segue("convert", "import", checkpoint, tmp_path / "out", "--base", official_folder, "--json")
    found = json.loads(run.stdout)
    assert {row["component"]: row["loaded"] for row in found["coverage"]}["mask_decoder"] == 131
    assert run.stderr == "" and len(found["notes"]) == 5


def test_components_are_poured_by_name(run_segue, official_folder, tmp_path):
    arguments = ("convert", "init", official_folder, tmp_path / "out", "--from", official_folder)
    run = run_segue(*arguments, "--components", "mask_decoder, vision")
    assert run.exit_code == 0 and "into tiny" in run.stdout and "kept as they were: connector, language" in run.stderr
    whole = json.loads(run_segue(*arguments, "--overwrite", "--json").stdout)
    assert whole["report"]["fraction"] == 1.0 and whole["report"]["kept"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("import", "{pth}", "{out}"), "name the model that this training began from: --base MODEL"),
        (("import", "{official}", "{out}", "--base", "x", "--alpha", "2"), "--base, --alpha is for a .pth of training"),
        (("import", "{official}", "{official}"), "is read; choose another folder"),
        (("import", "{missing}", "{out}"), "there is no folder"),
        (("init", "{official}", "{out}", "--from", "{official}", "--min-coverage", "0.5"), "add --components"),
        (("init", "{official}", "{out}", "--from", "{official}", "--components", "llm"), "unknown component llm"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(run_segue, official_folder, checkpoint, tmp_path, arguments, words):
    places = {"pth": checkpoint, "out": tmp_path / "out", "official": official_folder, "missing": tmp_path / "none"}
    run = run_segue("convert", *(argument.format(**places) for argument in arguments))
    assert run.exit_code == 2 and words in run.stderr and run.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_mistake_is_json_too_where_json_was_asked_for(run_segue, checkpoint, tmp_path):
    run = run_segue("convert", "import", checkpoint, tmp_path / "out", "--json")
    assert json.loads(run.stdout)["kind"] == "ConfigError"


def test_help_lists_the_sub_commands(run_segue):
    text = run_segue("convert", "--help").stdout
    assert all(f" {name} " in text for name in ("import", "export", "init"))
