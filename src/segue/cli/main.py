"""The command line's front door: which commands there are, and what an error looks like.

Listing the commands imports none of them, so `segue --help` is quick and needs no torch.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from segue.cli import console
from segue.errors import ConfigError, SegueError
from segue.files import DISK_ERRORS
from segue.registry import Table

_ROWS = (
    ("demo", "segue.cli.demo:command", "Run the main job on a scene and a clip made on the spot."),
    ("segment", "segue.cli.segment:command", "Find what is named in words; write masks, overlays and scores."),
    ("export", "segue.cli.export:command", "Write what was found as other tools take it: COCO, YOLO, CVAT and others."),
    ("chat", "segue.cli.chat:command", "Talk about an image or a video; answers may carry regions."),
    ("serve", "segue.cli.serve:command", "Serve a model over HTTP, in OpenAI's form, with regions on the answers."),
    ("convert", "segue.cli.convert:app", "Turn checkpoints into ours and back; transfer parts to another model."),
    ("train", "segue.cli.train:command", "Train as a recipe says."),
    ("finetune", "segue.cli.train:finetune", "Fine-tune a model on your own masks."),
    ("models", "segue.cli.models:command", "List the released checkpoints: sizes, memory, licences, published scores."),
    ("evaluate", "segue.cli.evaluate:app", "Score a model on benchmarks or on your own masks; compare two runs."),
    ("cache", "segue.cli.cache:app", "Features of frozen encoders on disk: build, check, look at, make room."),
    ("inspect", "segue.cli.inspect:command", "Tell what a model folder is, from its headers alone."),
    ("doctor", "segue.cli.doctor:command", "Check this machine, a model folder, or your data."),
    ("data", "segue.cli.data:app", "Make data sets: generated scenes and vessels with exact masks."),
    ("parity", "segue.cli.parity:command", "Replay a recording of the original code and compare every seam."),
    ("bench", "segue.cli.bench:command", "Measure what things cost, as ratios from one run."),
    ("estimate", "segue.cli.estimate:app", "Tell what a job will take on other machines, by arithmetic alone."),
)

COMMANDS = Table("command", {name: target for name, target, _ in _ROWS})
"""Every command: its name, and the function that typer makes it from, or the typer application of a group of them."""

USER_ERROR = 2
INTERRUPTED = 130


class _Group(TyperGroup):
    """Commands imported when they are called; every error of the house becomes one line and an exit code here."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        ctx.meta["json"] = "--json" in rest
        _check_empty(str(name), rest)
        return name, built(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SegueError as error:
            self._end(ctx, str(error), error)
        except OSError as error:
            # a full disk, a place that cannot be written, a folder removed on the way: no traceback says more
            if error.filename is None and error.errno not in DISK_ERRORS:
                raise
            place = "" if error.filename is None else f"{error.filename}: "
            self._end(ctx, f"{place}{error.strerror or error}; what was finished is kept", error)
        except KeyboardInterrupt as error:
            console.say("interrupted")
            raise typer.Exit(INTERRUPTED) from error

    def _end(self, ctx: Any, text: str, error: Exception) -> NoReturn:
        console.error(text)
        if ctx.meta.get("json"):
            print(json.dumps({"error": console.shortened(text), "kind": type(error).__name__}), flush=True)
        raise typer.Exit(USER_ERROR) from error


def _check_empty(name: str, arguments: Sequence[str]) -> None:
    """Raises: ConfigError, for an argument without a letter, which as a path would be the working folder."""
    if any(one == "" or re.fullmatch("--[a-z0-9-]+=", one) for one in arguments):
        raise ConfigError(
            f"an argument is empty in {shlex.join(['segue', name, *arguments])}; give a value, or leave the option "
            "out. A variable of the shell that is not set is empty too"
        )


def built(name: str) -> Any:
    """A command by its name, imported and ready to be called: a click command or a group of them."""
    target = COMMANDS[name]
    if isinstance(target, typer.Typer):
        target.rich_markup_mode = None
        group: Any = typer.main.get_command(target)
        for part in group.commands.values():
            part.short_help = " ".join((part.help or "").split("\n\n")[0].split())  # without one it is cut
        return group
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(target)
    return typer.main.get_command(app)


def _show_version(wanted: bool) -> bool:
    if wanted:
        print(f"segue {version('segue')}")
        raise typer.Exit
    return wanted


def _common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr what is being done.")] = False,
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Ask about images and videos in words; get words back, and the pixels they speak of."""
    log = logging.getLogger("segue")
    log.handlers = [console.LogHandler()]
    log.setLevel(logging.INFO if verbose else logging.WARNING)


def _listed() -> None:
    """Stands for a command in the list of commands; never called."""


def application() -> typer.Typer:
    """The command line as a typer application, every command listed and none imported."""
    app = typer.Typer(
        cls=_Group,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        rich_markup_mode=None,  # plain help, whose boxes would cut words on narrow terminals
        context_settings={"help_option_names": ["-h", "--help"]},  # commands below take over these names
    )
    app.callback()(_common)
    for name, _, summary in _ROWS:
        app.command(name, help=summary, short_help=summary)(_listed)
    return app


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave the process: 0 all good, 1 a bug (with its traceback), 2 a user error, 130 Ctrl-C.

    A user error is one line on stderr; with `--json` also one JSON object {"error", "kind"} on stdout.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what a terminal of another encoding than UTF-8 lacks
    typer.main.get_command(application())(args=arguments, prog_name="segue")
    raise AssertionError("typer leaves the process itself")


if __name__ == "__main__":  # launchers start modules: accelerate launch -m segue.cli.main
    main()
