"""`segue doctor`: can this machine run Segue, or is this model folder sound?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from segue.cli import options
from segue.cli.environment import Finding, examine

_STYLES = {"ok": "green", "note": "dim", "problem": "bold red"}


def command(
    target: Annotated[str, typer.Argument(metavar="[env|MODEL]", help="env, or a model folder.")] = "env",
    as_json: options.Json = False,
) -> None:
    """Check this machine, or a model folder. The exit code is 0 where all that is needed is there, else 2."""
    if target != "env":
        from segue.cli.inspect import report

        raise typer.Exit(report(target, as_json=as_json))

    findings = examine()
    usable = all(finding.status != "problem" for finding in findings)
    if as_json:
        checks = [{"name": found.name, "status": found.status, "value": found.value} for found in findings]
        print(json.dumps({"usable": usable, "checks": checks}, ensure_ascii=False))
    else:
        _print(findings, usable)
    raise typer.Exit(0 if usable else 2)


def _print(findings: Sequence[Finding], usable: bool) -> None:
    table = Table.grid(padding=(0, 2))
    for found in findings:
        table.add_row(Text(found.status, style=_STYLES[found.status]), Text(found.name), Text(found.value))
    console = Console()
    console.print(table)
    console.print("Segue can run here." if usable else "Segue cannot run here until the problems above are solved.")
