"""Listing what Segue can do must not cost the seconds that torch costs."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "av"}


def imported(*arguments: str) -> tuple[str, set[str]]:
    """What a fresh interpreter prints, and the names of all modules it imports."""
    run = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    return run.stdout, {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize("module", ["segue", "segue.types", "segue.config", "segue.registry", "segue.geometry"])
def test_importing_the_ground_floors_loads_nothing_heavy(module):
    _, modules = imported("-c", f"import {module}")
    assert module in modules
    assert modules & HEAVY == set()


def test_help_lists_the_commands_and_loads_nothing_heavy():
    text, modules = imported("-c", "from segue.cli.main import main; main(['--help'])")
    assert "segment" in text and "inspect" in text
    assert modules & HEAVY == set()
