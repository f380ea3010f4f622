"""`segue data`: data sets made on the spot."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from segue.cli import options
from segue.cli.console import Bar, say
from segue.errors import ConfigError

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def group() -> None:
    """Data sets made on the spot."""


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; it must not be there yet.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="finetune, coco or pictures (my folder); refcoco, image_chat, gcg or region_caption (stills); "
            "ref_vos, ref_sav or video_chat (clips).",
        ),
    ] = "finetune",
    kind: Annotated[
        Literal["scenes", "vessels"],
        typer.Option("--kind", help="Drawn things with many phrases, or thin vessels in scans of patients."),
    ] = "scenes",
    count: Annotated[int, typer.Option("--count", min=1, help="How many images or clips.")] = 100,
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option("--split", help="No drawing is in two splits.")
    ] = "train",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the whole series.")] = 0,
    start: Annotated[int, typer.Option("--start", min=0, help="Number of the first one in its series.")] = 0,
    size: Annotated[
        str | None, typer.Option("--size", help="WIDTHxHEIGHT of all, such as 320x240; without it sizes vary.")
    ] = None,
    frames: Annotated[int | None, typer.Option("--frames", min=4, help="Of a clip; 8 without it.")] = None,
    language: Annotated[Literal["en", "zh", "both"], typer.Option("--language", help="Of the words.")] = "en",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older data set of that name.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write generated scenes or vessels, with exact masks, in a form that datasets have on disk.

    The folder appears when all is written; a run that is cut short leaves nothing.
    """
    from segue.synth.writers import FORMATS
    from segue.synth.writing import Request, write

    request = Request(
        format=form,
        kind=kind,
        count=count,
        split=split,
        seed=seed,
        start=start,
        size=_parsed(size),
        frames=frames,
        languages=("en", "zh") if language == "both" else (language,),
    )
    with Bar(count) as bar:
        bar.start(f"drawing for {form}", 0)
        write(out.expanduser().absolute(), request, overwrite=overwrite, drawn=bar.done)
    files = sum(path.is_file() for path in out.expanduser().rglob("*"))
    reader = FORMATS[form]
    given = "".join(f", {name}={value!r}" for name, value in reader.options)
    if as_json:
        told = {"output": str(out), "format": form, "kind": kind, "count": count, "files": files}
        print(json.dumps({**told, "dataset": reader.dataset, "options": dict(reader.options)}, ensure_ascii=False))
        return
    word = "clip" if reader.holds == "clips" else "image"
    print(f"{out}: {count} {word}{'s' * (count > 1)}, {files} files")
    say(f"Read it with segue.datasets.DATASETS[{reader.dataset!r}](root, split{given}).")


def _parsed(size: str | None) -> tuple[int, int] | None:
    """(height, width) of a size as people write it.

    Raises: ConfigError.
    """
    if size is None:
        return None
    if not (match := re.fullmatch(r"(\d+)[xX×](\d+)", size)):
        raise ConfigError(f"the size is {size!r}; expected WIDTHxHEIGHT in pixels, such as 320x240")
    return int(match[2]), int(match[1])
