import json
import logging
import shlex
import subprocess
import sys
from io import BytesIO, TextIOWrapper

import pytest
import typer
from typer.testing import CliRunner

from segue.cli import main
from segue.errors import DataError


def run(*arguments: str):
    return CliRunner().invoke(main.application(), list(arguments), catch_exceptions=False)


@pytest.fixture
def doing(monkeypatch):
    """A command line whose `demo` does what it is told."""

    def install(action):
        def command(as_json: bool = typer.Option(False, "--json")) -> None:
            action()

        monkeypatch.setattr(main, "COMMANDS", {"demo": command})

    return install


def fail(error: BaseException):
    def action() -> None:
        raise error

    return action


def test_help_names_every_command_with_what_it_is_for():
    text = run("--help").output
    for name, _, summary in main._ROWS:
        assert name in text and summary[:30] in text


@pytest.mark.parametrize("arguments", [("segmnt", "a.jpg"), ("segment",), ("segment", "--colour"), ("--nothing",)])
def test_a_typing_mistake_is_a_usage_error(arguments):
    result = run(*arguments)
    assert result.exit_code == 2 and "Usage" in result.stderr


def test_a_mistyped_command_brings_the_nearest_name():
    assert "Did you mean 'segment'" in run("segmnt").stderr


def test_version_is_printed_and_nothing_else_done():
    result = run("--version")
    assert result.exit_code == 0 and result.stdout.startswith("segue 0.")


def test_a_user_error_is_one_line_and_exit_2(doing):
    doing(fail(DataError("the label [bold] is unknown; expected one of a, b " + "and so on " * 20)))
    result = run("demo")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: the label [bold] is unknown") and result.stderr.count("\n") == 1


def test_a_user_error_is_json_too_where_json_was_asked_for(doing):
    doing(fail(DataError("no such thing")))
    assert run("demo", "--json").stdout == '{"error": "no such thing", "kind": "DataError"}\n'


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(13, "Permission denied", "/x"), "error: /x: Permission denied; what was finished is kept\n"),
        (OSError(28, "No space left on device"), "error: No space left on device; what was finished is kept\n"),
    ],
)
def test_a_disk_that_refuses_is_one_line_and_exit_2(doing, error, told):
    doing(fail(error))
    result = run("demo")
    assert (result.exit_code, result.stderr) == (2, told)


@pytest.mark.parametrize("words", [(), ("segment",), ("convert", "init"), ("evaluate",), ("evaluate", "compare")])
def test_h_is_help_everywhere(words):
    assert run(*words, "-h").output == run(*words, "--help").output


MISTAKES = {
    "segment a b -o c -m deno": "did you mean 'demo'?",
    "inspect huggingface.co/ByteDance/Sa2VA-4B": "did you mean 'ByteDance/Sa2VA-4B'?",
    "doctor demmo": "did you mean 'demo'?",
    "finetune x --base demoo": "did you mean 'demo'?",
    "chat --device cudda": "did you mean cuda?",
    "finetune x --base demo --device cuda": "cannot be trained on by name",
    "segment a b -o c --frames every:3": "unknown frame plan",
    "segment https://a.b/c.png b -o c": "download it first",
    "segment a b -o c --prefill Yes.": "asks for no mask",
    "train nothing.yaml": "there is no recipe nothing.yaml",
    "serve -m demo --host 0.0.0.0": "can be reached from other machines and there is no key",
}

JUDGED = """
import contextlib, io, json, sys
import segue.cli.main as m
for words in sys.argv[1:]:
    told, code = io.StringIO(), None
    with contextlib.redirect_stderr(told):
        try:
            m.main(words.split())
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, told.getvalue(), "torch" in sys.modules]))
"""


@pytest.fixture(scope="module")
def judged():
    """Exit code, what is told, and whether torch was imported for it: all mistakes in one process."""
    done = subprocess.run([sys.executable, "-c", JUDGED, *MISTAKES], capture_output=True, text=True, check=True)
    return dict(zip(MISTAKES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("words", MISTAKES)
def test_arguments_are_judged_before_torch_is_imported(judged, words):
    code, told, has_torch = judged[words]
    assert (code, has_torch) == (2, False)
    assert MISTAKES[words] in told and told.count("\n") == 1


@pytest.mark.parametrize("words", [("segment", "", "a cat", "-o", "out"), ("segment", "a.png", "a cat", "--output=")])
def test_an_empty_argument_is_not_the_working_folder(words):
    result = run(*words)
    assert result.exit_code == 2
    assert f"an argument is empty in {shlex.join(['segue', *words])}; give a value" in result.stderr


def test_what_a_terminal_cannot_write_is_no_bug(monkeypatch):
    terminal = TextIOWrapper(BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(SystemExit):
        main.main(["--version"])
    terminal.write("不在这里")
    terminal.seek(0)
    assert "\\u4e0d\\u5728" in terminal.read()


def test_ctrl_c_is_one_line_and_exit_130(doing):
    doing(fail(KeyboardInterrupt()))
    result = run("demo")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_a_bug_is_a_traceback_and_exit_1():
    code = "import segue.cli.main as m; m.COMMANDS = {'demo': lambda: 1 / 0}; m.main(['demo'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "ZeroDivisionError" in result.stderr


def test_the_commands_own_exit_code_stands(doing):
    doing(fail(typer.Exit(2)))
    assert run("demo").exit_code == 2


def test_logs_are_plain_lines_on_stderr_and_shown_when_asked_for(doing):
    def action() -> None:
        logging.getLogger("segue.test").info("weights are in")
        logging.getLogger("segue.test").warning("seed is ignored")

    doing(action)
    assert run("demo").stderr == "warning: seed is ignored\n"
    assert run("--verbose", "demo").stderr == "info: weights are in\nwarning: seed is ignored\n"
