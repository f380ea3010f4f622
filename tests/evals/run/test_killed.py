"""A run that is killed goes on to the same report, byte for byte."""

from pathlib import Path

import pytest
import warm
from asked import write_folder


def killed(tmp_path, cases):
    """How often runs were killed, two times at most in each case, and went on to the report of a run left in peace."""
    script = Path(__file__).with_name("killed_evaluation.py")
    run = warm.run(script, write_folder(tmp_path / "mine"), tmp_path / "runs", 7, cases)
    assert run.returncode == 0, run.stderr
    return int(run.stdout.splitlines()[-1])


def test_a_run_that_is_killed_twice_ends_in_the_same_report(tmp_path):
    assert killed(tmp_path, 2) == 4


@pytest.mark.slow
def test_a_run_may_be_killed_anywhere(tmp_path):
    assert killed(tmp_path, 30) == 60
