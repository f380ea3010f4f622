"""What the pages of the docs name is there: tests, files, and the options of commands in their tables."""

import re
import shlex
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}


def test_every_guard_on_the_security_page_has_its_test():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGES["security.md"])
    assert len(named) > 15
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"


def test_every_page_is_in_the_navigation_and_every_file_a_page_names_is_there():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page, text in PAGES.items():
        assert f": {page}\n" in navigation, page
        for path in re.findall(r"`((?:benchmarks|examples|recipes|src|tests)/[\w/.-]+\.\w+)`", text):
            assert (ROOT / path).exists() or page == "extend.md", f"{page} names {path}"


@pytest.mark.parametrize("page", ["from_others.md", "troubleshooting.md", "use.md", "scaling.md"])
def test_commands_in_running_text_have_the_options_that_they_are_shown_with(page):
    from segue.cli.main import COMMANDS, built

    commands = [shlex.split(words) for words in re.findall(r"`segue ([a-z]+ [^`]+)`", PAGES[page])]
    assert commands or page in ("use.md", "scaling.md")
    for name, *words in commands:
        assert name in list(COMMANDS), f"segue {name}"
        command = built(name)
        parts = getattr(command, "commands", None)
        if parts is not None:
            command = parts[words[0]] if words[0] in parts else parts["run"]
        known = {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)}
        assert isinstance(command, typer.core.TyperCommand)
        for word in words:
            assert not re.match(r"--?[a-z]", word) or word in known, f"segue {name}: {word} of {sorted(known)}"
