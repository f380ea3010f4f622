import io

import pytest
from rich.console import Console
from rich.table import Table

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


def test_an_error_is_one_line_whatever_a_file_is_named(terminal):
    console.error("/a\nb.png does not exist")
    assert terminal.getvalue() == "error: /a\\nb.png does not exist\n"


def test_an_error_into_which_a_file_has_put_megabytes_keeps_beginning_and_end(terminal):
    console.error(f"bad.pth holds {'x' * 3_000_000}; fetch it again")
    told = terminal.getvalue()
    assert len(told) < 10_000 and told.startswith("error: bad.pth") and told.endswith("fetch it again\n")


@pytest.mark.parametrize("columns", [None, 120, 75, 60, 20])
def test_a_table_cuts_no_word_at_any_width(columns, monkeypatch):
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(columns))
    table = Table("seam", "max difference", "what it says", title="a recording")
    table.add_row("sam2.video.memory", "1.2e-05", "agrees with what was recorded, as far as it was compared")
    sent = io.StringIO()
    console.VisibleConsole(file=sent).show(table)
    words = sent.getvalue().replace(":", "").replace(",", "").split()
    assert {"sam2.video.memory", "1.2e-05", "recorded", "difference", "compared"} <= set(words)
    assert max(map(len, sent.getvalue().splitlines())) <= (columns or 1000)
    if columns != 20:  # there it is told row by row
        assert all(line == line.rstrip() for line in sent.getvalue().splitlines())
