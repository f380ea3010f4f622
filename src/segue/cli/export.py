"""`segue export`: what `segue segment` has found, in the forms of the tools where people label and train."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segue.cli import options
from segue.cli.console import say

if TYPE_CHECKING:
    from segue.integrations.forms import Written


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The -o of a `segue segment`.")],
    form: Annotated[
        str,
        typer.Argument(metavar="FORM", help="coco, yolo, cvat, label_studio, davis, or ref_vos (MeViS, Ref-YTVOS)."),
    ],
    output: options.Output,
    as_json: options.Json = False,
) -> None:
    """Write what `segue segment` has found as another tool takes it.

    Tells what a form cannot hold; where it has polygons alone, how far they
    are from the masks.
    """
    from segue.integrations import forms, runs

    written = forms.export(runs.read(run), form, output)
    if as_json:
        print(json.dumps({"output": str(output), "form": form, **asdict(written)}))
        return
    pictures, objects = (f"{count:,} {word}{'' if count == 1 else 's'}" for count, word in _counts(written))
    say(f"{output}: {objects} on {pictures}, for {form}")
    if written.area_errors:
        mean, worst = sum(written.area_errors) / len(written.area_errors), max(written.area_errors)
        say(f"polygons differ from their masks in {mean:.2%} of the area, {worst:.2%} at worst")
    for note in written.notes:
        say(f"note: {note}", style="yellow")


def _counts(written: Written) -> tuple[tuple[int, str], tuple[int, str]]:
    return (written.pictures, "picture"), (written.objects, "object")
