"""What people may rely on, word for word: `segue.__all__`, and every command with its arguments and flags.

A change here is a line in CHANGELOG.md. To write the list down anew: python tests/house/test_surface.py
"""

from pathlib import Path

import typer

import segue

PINNED = Path(__file__).with_name("surface.txt")


def surface() -> str:
    """One line per public name and per command: its arguments in capitals, then its flags."""
    from segue.cli.main import COMMANDS, application, application_of

    group = typer.main.get_command(application())
    lines = [f"segue.{name}" for name in sorted(segue.__all__)]
    lines.append(_line("segue", group))
    for name in COMMANDS:
        command = typer.main.get_command(application_of(name))
        parts = getattr(command, "commands", {})
        lines += [_line(f"segue {name} {part}", parts[part]) for part in parts] or [_line(f"segue {name}", command)]
    return "\n".join(lines) + "\n"


def _line(name: str, command) -> str:
    words = [
        parameter.name.upper()
        if parameter.param_type_name == "argument"
        else "|".join([*parameter.opts, *parameter.secondary_opts])
        for parameter in command.params
    ]
    return " ".join([name, *words])


def test_every_public_name_leads_somewhere():
    assert [name for name in segue.__all__ if not hasattr(segue, name)] == []


def test_the_public_surface_is_the_one_written_down():
    assert surface() == PINNED.read_text(encoding="utf-8"), (
        "if meant: python tests/house/test_surface.py, and a changelog line"
    )


if __name__ == "__main__":
    PINNED.write_text(surface(), encoding="utf-8")
