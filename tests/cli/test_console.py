import io

import pytest
from rich.console import Console

from segue.cli import console


@pytest.fixture
def terminal(monkeypatch):
    """A terminal in the place of stderr; read what it was sent."""
    sent = io.StringIO()
    monkeypatch.setattr(console, "STDERR", Console(file=sent, force_terminal=True, width=100, color_system=None))
    return sent


def drive(**options: bool) -> None:
    with console.Bar("inputs", failures_told=0, **options) as bar:
        bar.start(3)
        bar.start_frames("walk [1]", 4)
        bar.step_frame()
        bar.step("no such file")
        console.say("walk [1] failed")


def test_the_bar_counts_inputs_failures_and_frames(terminal):
    drive()
    assert "walk [1]" in terminal.getvalue() and "inputs, 1 failed" in terminal.getvalue()
    assert "1/3" in terminal.getvalue() and "-:--:--" in terminal.getvalue()


def test_a_hidden_bar_leaves_only_the_lines(terminal):
    drive(hidden=True)
    assert terminal.getvalue() == "walk [1] failed\n"


def test_without_a_terminal_there_are_only_lines(capsys):
    drive()
    assert capsys.readouterr().err == "walk [1] failed\n"


def test_a_bar_that_never_starts_draws_nothing(terminal):
    with console.Bar("inputs") as bar:
        console.say("streaming")
    assert bar and terminal.getvalue() == "streaming\n"


def test_long_lines_and_brackets_stay_as_they_are(terminal):
    console.error("[bold] " + "x" * 300)
    assert terminal.getvalue() == "error: [bold] " + "x" * 300 + "\n"
