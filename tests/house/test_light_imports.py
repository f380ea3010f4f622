"""Listing what Segue can do must not cost the seconds that torch costs."""

import subprocess
import sys

import pytest
import warm

HEAVY = {"torch", "transformers", "av"}


def imported(*arguments: str) -> tuple[str, set[str]]:
    """What a fresh interpreter prints, and the names of all modules it imports."""
    run = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    return run.stdout, {line.rpartition("|")[2].strip() for line in lines}


def test_importing_the_ground_floors_loads_nothing_heavy():
    ground = {"segue", "segue.types", "segue.config", "segue.registry", "segue.geometry"}
    _, modules = imported("-c", f"import {', '.join(sorted(ground))}")
    assert ground <= modules
    assert modules & HEAVY == set()


def test_loading_brings_no_scene_painter_no_converter_no_dataset_and_no_trainer(tmp_path):
    (tmp_path / "load.py").write_text("import sys, segue.loading; print(*sys.modules)")
    modules = warm.run(tmp_path / "load.py").stdout.split()
    rooms = ("synth", "data", "own_data", "datasets", "demo", "evals", "train")
    converters = ("convert", "folders", "official", "imported", "transfer", "pth", "upstream_training", "merge")
    heavy = {*(f"segue.{room}" for room in rooms), *(f"segue.checkpoints.{name}" for name in converters)}
    assert "segue.loading" in modules
    assert {name for name in modules if name in heavy or name.startswith(tuple(f"{room}." for room in heavy))} == set()


@pytest.mark.parametrize(
    ("command", "told", "heavy"),
    [
        (["--help"], ["segment", "inspect"], HEAVY),
        (["models"], ["ByteDance/Sa2VA-4B", "3.942 B"], HEAVY),
        (["evaluate", "list"], ["scenes_test", "mevis_u"], HEAVY - {"av"}),
    ],
)
def test_what_only_lists_loads_nothing_heavy(command, told, heavy):
    text, modules = imported("-c", f"from segue.cli.main import main; main({command})")
    assert all(word in text for word in told)
    assert modules & heavy == set()
