import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from segue.cli import train
from segue.cli.main import main


@pytest.fixture
def mine(tmp_path):
    """Pictures of one bright square each, enough of them for a validation split."""
    for name in ("images", "masks"):
        (tmp_path / "mine" / name).mkdir(parents=True)
    for number in range(6):
        image, mask = np.full((60, 80, 3), 30, np.uint8), np.zeros((60, 80), np.uint8)
        image[10:40, 5 * number : 5 * number + 30], mask[10:40, 5 * number : 5 * number + 30] = 220, 255
        Image.fromarray(image).save(tmp_path / "mine" / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "mine" / "masks" / f"{number}.png")
    return tmp_path / "mine"


def run(*words):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


def test_a_fine_tune_is_one_command_and_goes_on_by_its_recipe(mine, official_folder, tmp_path, capsys):
    out = tmp_path / "run"
    given = ("--set", "max_tiles=1", "--set", "accumulation=1", "--device", "cpu", "--json")
    words = ("--base", official_folder, "--phrase", "the square", "--steps", 2, "-o", out)
    assert run("finetune", mine, *words, "--limit", 1, *given) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["step"] == 1
    assert "mine: 6 rows (1 test, 4 train, 1 val) with 6 objects, no errors" in told.err
    assert "memory per process: about" in told.err
    assert "learns for 2 steps" in told.err and "-o " + str(out) + " --resume" in told.err
    for folder, base, text in ((mine.parent, official_folder, "FOLDER"), (mine, mine, "--base")):
        assert run("finetune", folder, "--base", base, "-o", out, "--resume", *given) == 2
        assert f"was started with {text} " in capsys.readouterr().err
    assert run("finetune", mine, "--base", official_folder, "-o", out, "--resume", "--device", "cpu", "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["step"] == 2 and f"score it: segue evaluate {out} --on {mine}" in told.err
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert run("inspect", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["trained"]["step"] == 2


@pytest.mark.parametrize(("name", "splits", "rest"), [("run", {}, []), ("list", {"val"}, ["--split", "val"])])
def test_the_line_to_score_a_run_is_one_that_works(capsys, name, splits, rest):
    """A run may be called as a sub-command is, and a folder may have no test split."""
    data = SimpleNamespace(root=Path("mine"), options={})
    made, outcome = SimpleNamespace(data=[data], model="demo"), SimpleNamespace(run=Path(name), is_stopped=False)
    train._tell_next(made, outcome, phrase=None, group=None, has_test=not splits)
    expected = shlex.join(["segue", "evaluate", f"./{name}", "--on", "mine", *rest, "-o", f"{name}-scores"])
    assert f"score it: {expected}" in capsys.readouterr().err


def test_bad_data_end_it_before_anything_is_loaded(mine, official_folder, tmp_path, capsys):
    (mine / "images" / "1.png").write_bytes(b"no image")
    words = ("--base", official_folder, "--phrase", "the square", "-o", tmp_path / "run", "--device", "cpu")
    assert run("finetune", mine, *words) == 2
    told = capsys.readouterr().err
    assert f"{mine} has 1 error: unreadable file (1, first in 1.png)" in told
    assert f"`segue doctor {mine} --phrase 'the square' --fix {mine}-mended` writes a corrected copy" in told
    assert not (tmp_path / "run").exists()


def test_two_lengths_contradict_each_other(mine, tmp_path, capsys):
    assert run("finetune", mine, "--base", "demo", "--steps", 2, "--epochs", 1) == 2
    assert "contradict each other" in capsys.readouterr().err


def test_what_a_run_that_goes_on_does_not_heed_is_told(mine, tmp_path, capsys):
    words = ("--base", "demo", "--phrase", "cat", "--steps", 2, "-o", tmp_path / "none", "--resume")
    assert run("finetune", mine, *words) == 2
    assert "--phrase, --steps have no effect with --resume" in capsys.readouterr().err
