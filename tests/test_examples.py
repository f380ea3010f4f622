"""What stands in examples/ runs, shortened: with the tiny random model, and with the demo model."""

import importlib.util
import json
import os
import runpy
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from segue.checkpoints import adapters
from segue.cli.train import Watching
from segue.train import checkpoints, run_logger

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def finetune_vessels(monkeypatch, tmp_path, capsys):
    """Runs the example in a folder of its own with further words; returns what it prints."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["finetune_vessels.py", *map(str, words)])
        runpy.run_path(str(EXAMPLES / "finetune_vessels.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def learned(run):
    return checkpoints.read_all(adapters.find(run) / adapters.TENSORS)


def test_a_fine_tune_that_is_killed_goes_on_and_ends_as_if_nothing_had_been(
    finetune_vessels, official_folder, tmp_path, monkeypatch
):
    words = ("--base", official_folder, "--images", 4, "--steps", 2)
    told = finetune_vessels(*words, "--output", "whole")
    assert "No errors, 0 warnings" in told and "chosen: 0." in told and "after, at 0.5" in told
    assert {path.name for path in Path("whole/pictures").iterdir()} == {"worst.png", "middle.png", "best.png"}
    assert "data:image/jpeg" in Path("whole/run/report.html").read_text()
    shutil.copytree("whole/data", "killed/data")
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stopped:
        patched.setattr(Watching, "step", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        finetune_vessels(*words, "--output", "killed")
    assert stopped.value.code == 130 and adapters.read(adapters.find(Path("killed/run"))).step == 1
    assert finetune_vessels(*words, "--output", "killed").splitlines()[-6:-3] == told.splitlines()[-6:-3]
    whole, again = learned(tmp_path / "whole" / "run"), learned(tmp_path / "killed" / "run")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


def test_vessels_are_found_after_a_few_steps(finetune_vessels):
    rows = [line.split() for line in finetune_vessels("--images", 24, "--steps", 24).splitlines()]
    dice = {row[0]: float(row[3]) for row in rows if row[1:3] == ["at", "0.5"]}
    assert dice["before,"] < 0.4 and dice["after,"] > 0.5


@pytest.mark.slow  # four runs, each judged
def test_the_three_stages_shortened_learn_and_tell_how_they_did(monkeypatch, tmp_path, capsys):
    name = "qwen_vl_three_stages"
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    stages = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, stages)
    spec.loader.exec_module(stages)
    monkeypatch.setattr(stages, "STAGES", {"language": 5, "captions": 4, "tasks": 10, "dialogues": 4})
    monkeypatch.setattr(stages, "POINTS", dict.fromkeys(stages.POINTS, 1))
    for count, value in {"SCENES": 40, "PAGES": 8, "HELD_OUT": 3, "TESTED": 2}.items():
        monkeypatch.setattr(stages, count, value)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", str(tmp_path / "out")])
    stages.main()
    told = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert [point["stage"] for point in told["points"]] == ["captions", "tasks", "dialogues"]
    assert all(0 <= point[figure] <= 1 for point in told["points"] for figure in stages.FIGURES)
    assert told["test"].keys() == {"tasks", "dialogues"}
    assert (tmp_path / "out" / "curves.svg").read_text().count("<polyline") == 4
    for stage in ("language", "tasks"):
        losses = [one["loss"] for one in run_logger.lines(tmp_path / "out" / stage / "log.jsonl") if "loss" in one]
        assert losses[-1] < losses[0]
    last = adapters.read(adapters.find(tmp_path / "out" / "dialogues"))
    assert (last.image_side, last.template) == (64, "qwen_vl_chat")
