"""`segue doctor DATA`, as people and scripts see it."""

import json

import numpy as np
import pytest
from PIL import Image

SQUARE = [4, 4, 20, 4, 20, 20, 4, 20]


@pytest.fixture
def data(tmp_path):
    def write(*items):
        (tmp_path / "my/images").mkdir(parents=True)
        for number, item in enumerate(items):
            item.update({"image": f"{number}.png", "text": item.get("text", ["cup"]), "split": "train"})
            Image.fromarray(np.full((40, 60, 3), 9 * number, np.uint8)).save(tmp_path / f"my/images/{number}.png")
        (tmp_path / "my/annotations.json").write_text(json.dumps(items))
        return tmp_path / "my"

    return write


def test_sound_data_are_exit_0_and_say_so(run_segue, data, tmp_path):
    run = run_segue("doctor", data({"mask": [[SQUARE]]}), "-o", tmp_path / "out")
    assert run.exit_code == 0
    assert "1 row (1 train), 1 object" in run.stdout and "No errors, 0 warnings" in run.stdout
    assert (tmp_path / "out/findings.jsonl").read_text() == ""


def test_faulty_data_are_exit_2_with_a_table_examples_and_pictures(run_segue, data, tmp_path):
    run = run_segue("doctor", data({"mask": [[[1, 1]]]}, {"mask": [SQUARE]}), "-o", tmp_path / "out", "--examples", 1)
    assert run.exit_code == 2
    told = " ".join(run.stdout.split())
    assert "row 0, 0.png, object 0 'cup': a polygon has 2 numbers" in told
    assert "1 error, 1 warning." in told and "take the polygon out, or draw it again" in told
    assert (tmp_path / "out/pictures/few_points-1.png").exists()


def test_scripts_get_everything_as_json(run_segue, data, tmp_path):
    run = run_segue("doctor", data({"mask": [[[1, 1]]]}), "-o", tmp_path / "out", "--json")
    told = json.loads(run.stdout)
    assert run.exit_code == 2 and told["usable"] is False and told["counts"] == {"few_points": 1}
    assert told["findings"][0]["row"] == 0 and told["findings"][0]["severity"] == "error"


def test_a_repair_is_exit_0_and_its_copy_too(run_segue, data, tmp_path):
    root = data({"mask": [[[1, 1]]]}, {"mask": [SQUARE, SQUARE], "text": ["cup", "cup"]})
    run = run_segue("doctor", root, "-o", tmp_path / "out", "--fix", tmp_path / "new")
    assert run.exit_code == 0 and "1 row, 1 left out" in run.stdout
    assert run_segue("doctor", tmp_path / "new", "-o", tmp_path / "out").exit_code == 0
    again = run_segue("doctor", root, "-o", tmp_path / "out", "--fix", tmp_path / "new")
    assert again.exit_code == 2 and "there already" in again.stderr.replace("\n", " ")
    told = json.loads(
        run_segue("doctor", root, "-o", tmp_path / "out", "--fix", tmp_path / "new", "--overwrite", "--json").stdout
    )
    assert told["fixed"] == {"output": str(tmp_path / "new"), "rows": 1, "dropped": 1}


def test_the_data_themselves_are_never_the_copy(run_segue, data):
    root = data({"mask": [[SQUARE]]})
    for target in (root, root / "images", root.parent):
        run = run_segue("doctor", root, "--fix", target, "--overwrite")
        assert run.exit_code == 2 and "never touched" in run.stderr.replace("\n", " ")


def test_a_folder_that_is_neither_model_nor_data_is_told_as_such(run_segue, tmp_path):
    run = run_segue("doctor", tmp_path)
    assert run.exit_code == 2 and "neither a model folder" in run.stderr.replace("\n", " ")


def test_options_for_data_are_refused_elsewhere(run_segue):
    run = run_segue("doctor", "env", "--fix", "x")
    assert run.exit_code == 2 and "--fix mean nothing here" in run.stderr.replace("\n", " ")


def test_a_folder_with_a_models_config_is_a_model_even_where_it_is_broken(run_segue, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "sa2va_chat"}')
    run = run_segue("doctor", tmp_path)
    assert run.exit_code == 2 and "neither" not in run.stderr and "folder" in run.stdout
