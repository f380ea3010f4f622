"""`segue data`: data sets made on the spot, and pairs from the web cleaned."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from segue.cli import options
from segue.cli.console import Bar, say, visible
from segue.errors import ConfigError
from segue.reading import at_home

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def group() -> None:
    """Data sets made on the spot, and pairs from the web cleaned."""


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
    from segue.own_data.formats.entries import split_named
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
    with Bar(f"drawing for {form}") as bar:
        write(at_home(out).absolute(), request, overwrite=overwrite, progress=bar)
    files = sum(path.is_file() for path in at_home(out).rglob("*"))
    reader = FORMATS[form]
    given = "".join(f", {name}={value!r}" for name, value in reader.options)
    if as_json:
        told = {"output": str(out), "format": form, "kind": kind, "count": count, "files": files}
        print(json.dumps({**told, "dataset": reader.dataset, "options": dict(reader.options)}))
        return
    word = "clip" if reader.holds == "clips" else "image"
    print(visible(f"{out}: {count} {word}{'s' * (count > 1)}, {files} files"), flush=True)
    say(f"In Python: segue.datasets.DATASETS[{reader.dataset!r}](Path(root), split{given})")
    if reader.dataset == "folder":
        whole = out.parent if split_named(out.name) else out
        say(f"look at it:     {shlex.join(['segue', 'doctor', str(whole)])}")
        say(f"learn from it:  {shlex.join(['segue', 'finetune', str(whole), '--base', 'demo', '-o', 'run'])}")


@app.command()
def clean(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSON record a line: image and text.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for what is kept, what is dropped, and counts.")],
    root: Annotated[
        Path | None, typer.Option("--root", help="Where the images lie; beside the file without it.")
    ] = None,
    rules: Annotated[
        list[str] | None,
        typer.Option("--set", help="A rule and its value, such as least_side=100 or emoji=false; can be repeated."),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that clean at once.")] = 1,
    shard: options.Shard = None,
    as_json: options.Json = False,
) -> None:
    """Clean pairs of pictures and texts, and count what each rule drops.

    A run that was cut short goes on with the same command.
    """
    from segue import config
    from segue.own_data import cleaning

    asked = config.from_overrides(cleaning.Rules, rules or [])
    with Bar(f"cleaning {file.name}") as bar:
        counts = cleaning.run(
            at_home(file),
            at_home(root or file.parent),
            at_home(out),
            asked,
            workers=workers,
            shard=options.parse_shard(shard) or (0, 1),
            progress=bar,
        )
    if as_json:
        print(json.dumps({"output": str(out), "counts": counts}))
        return
    if counts is None:
        say(f"{out}: the rest is other shards' work; the last to end joins all")
        return
    total = sum(counts.values())
    for name, count in cleaning.told(counts):
        print(f"{name:16} {count:>12} {count / max(total, 1):7.1%}")
    say(f"{out}: {cleaning.KEPT}, {cleaning.DROPPED} with reasons, {cleaning.COUNTS}")


def _parsed(size: str | None) -> tuple[int, int] | None:
    """(height, width) of a size as people write it.

    Raises: ConfigError.
    """
    if size is None:
        return None
    if not (match := re.fullmatch(r"(\d+)[xX×](\d+)", size)):
        raise ConfigError(f"the size is {size!r}; expected WIDTHxHEIGHT in pixels, such as 320x240")
    return int(match[2]), int(match[1])
