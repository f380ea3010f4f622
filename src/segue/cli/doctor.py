"""`segue doctor`: can this machine run Segue, is this model folder sound, are these data fit to learn from?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from segue.cli import options
from segue.cli.console import VisibleConsole
from segue.cli.environment import EnvironmentCheck, examine
from segue.errors import CheckpointError, ConfigError
from segue.reading import at_home

if TYPE_CHECKING:
    from segue.cli import data_report

_STYLES = {"ok": "green", "note": "dim", "problem": "bold red"}


def command(
    target: Annotated[
        str,
        typer.Argument(metavar="[env|MODEL|DATA]", help="env, a model, your images and masks, or benchmarks' data."),
    ] = "env",
    on: Annotated[
        str | None,
        typer.Option("--on", help="DATA: check these benchmarks, separated by commas, and read their first rows."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="DATA: folder for findings and pictures; segue-out/doctor/NAME without."),
    ] = None,
    fix: Annotated[
        Path | None, typer.Option("--fix", help="DATA: write a corrected copy into this folder, which is made.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="DATA: replace an older copy.")] = False,
    phrase: options.Phrase = None,
    group: options.GroupPattern = None,
    examples: Annotated[int, typer.Option("--examples", min=0, help="DATA: most pictures of a kind.")] = 5,
    as_json: options.Json = False,
) -> None:
    """Check this machine, a model folder, or your data. The exit code is 0 where no error is left, else 2.

    Data are any folder of images and masks that training takes, see docs/data.md for the forms; or a folder of
    benchmarks' data, of which each is told to be ready or what it lacks.
    """
    folder = at_home(target)
    of_own = {"--output": output, "--fix": fix, "--overwrite": overwrite, "--phrase": phrase, "--group": group}
    if target != "env" and folder.is_dir() and not _is_model(folder):
        from segue.cli import data_report

        if on is not None:
            _refuse(f"{target} is looked at for benchmarks", of_own)
        settings = data_report.Settings(
            output=output,
            fix=fix,
            overwrite=overwrite,
            phrase=phrase,
            group=group,
            examples=examples,
            as_json=as_json,
        )
        raise typer.Exit(_data(folder, on, settings))
    _refuse(f"{target} is no folder of data", {"--on": on, **of_own})
    if target != "env":
        try:
            options.check_model(target)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; or a folder of data, or env") from error
        from segue.cli.inspect import report

        raise typer.Exit(report(target, as_json=as_json))

    findings = examine()
    usable = all(finding.status != "problem" for finding in findings)
    if as_json:
        checks = [{"name": found.name, "status": found.status, "value": found.value} for found in findings]
        print(json.dumps({"usable": usable, "checks": checks}))
    else:
        _print(findings, usable)
    raise typer.Exit(0 if usable else 2)


def _refuse(why: str, options: Mapping[str, object]) -> None:
    """Raises: ConfigError, if one of the options was given."""
    if given := [name for name, value in options.items() if value]:
        raise ConfigError(f"{why}, so {', '.join(given)} mean nothing here; leave them out")


def _data(folder: Path, on: str | None, settings: data_report.Settings) -> int:
    """Check a folder of benchmarks' data or of one's own, whichever it is; returns the exit code."""
    from segue.cli import data_report, layouts

    if on is not None:
        return layouts.report_on(folder, on, as_json=settings.as_json)
    found = layouts.survey(folder)
    if found.is_certain and settings.is_plain:
        return layouts.report(folder, found, as_json=settings.as_json)
    try:
        return data_report.report(folder, settings)
    except data_report.NotDataError:
        if not found.statuses:
            raise
        return layouts.report(folder, found, as_json=settings.as_json)


def _is_model(folder: Path) -> bool:
    """Whether a folder holds weights, or a configuration that says what model it is."""
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.safetensors.index.json")):
        return True
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool({"model_type", "architectures"} & config.keys())


def _print(findings: Sequence[EnvironmentCheck], usable: bool) -> None:
    table = Table.grid(padding=(0, 2))
    for found in findings:
        table.add_row(Text(found.status, style=_STYLES[found.status]), Text(found.name), Text(found.value))
    console = VisibleConsole()
    console.show(table)
    console.print("Segue can run here." if usable else "Segue cannot run here until the problems above are solved.")
