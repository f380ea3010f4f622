"""`segue convert`: checkpoints of the original into ours and back, our own into models, parts of one into another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from segue.cli import options
from segue.cli.console import STDERR, VisibleConsole, say
from segue.progress import size
from segue.reading import at_home

if TYPE_CHECKING:
    from segue.checkpoints.coverage import Coverage
    from segue.checkpoints.folders import Progress

app = typer.Typer(no_args_is_help=True, add_completion=False)
"""The sub-commands; each is one function here."""

_STAGES = {"hash": "reading what it is made from", "write": "writing", "verify": "reading back"}
_PARTS = ("component", "taken", "misshapen", "absent", "unused", "numbers", "share")

Out = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it appears when all is there.")]
Dtype = Annotated[
    Literal["bf16", "fp16", "fp32"],
    typer.Option("--dtype", help="Precision to write in; mask decoders stay in fp32."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace OUT, once the new folder is complete, if it is a model folder.")
]


@app.callback()
def group() -> None:
    """Turn checkpoints of the original into ours and back, our own into models, and parts of one into another."""


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A model folder, a hub id, or a .pth of training.")],
    out: Out,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help="For a .pth: the model that training began from, a folder or a hub id.",
            callback=options.check_model,
        ),
    ] = None,
    sam2: Annotated[
        Path | None,
        typer.Option("--sam2", help="For a base without SAM 2: a Sa2VA folder, or SAM 2's own .pt file."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", min=0.0, help="For a .pth: LoRA's alpha; twice its rank unless given.")
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", help="For a .pth: chat template, where the base does not say it.")
    ] = None,
    dtype: Dtype = "bf16",
    overwrite: Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write a checkpoint of the original as a model folder of ours: its folders, or a .pth of its trainer."""
    _begin(as_json, f"importing {source} as {out}")
    from segue.checkpoints import convert
    from segue.errors import ConfigError

    only = {"--base": base, "--sam2": sam2, "--alpha": alpha, "--template": template}
    if not Path(source).is_file():
        given = [name for name, value in only.items() if value is not None]
        if given:
            raise ConfigError(f"{', '.join(given)} is for a .pth of training; {source!r} is no such file")
        with _progress_bars(as_json) as progress:
            made_from = convert.import_folder(
                _folder(source), convert.Target(folder=out, dtype=dtype, overwrite=overwrite, progress=progress)
            )
        _done(out, as_json, {"made_from": made_from})
        return
    if base is None:
        text = f"{source} is a file of the original's trainer, which holds only what was trained"
        raise ConfigError(f"{text}; name the model that this training began from: --base MODEL")
    options = convert.TrainingOptions(base=_folder(base), sam2=sam2, alpha=alpha, template=template)
    with _progress_bars(as_json) as progress:
        found = convert.import_training(
            Path(source), convert.Target(folder=out, dtype=dtype, overwrite=overwrite, progress=progress), options
        )
    if not as_json:
        _account(found.rows, f"what {Path(source).name} says of the model; the rest is the base's")
        for note in found.notes:
            say(f"note: {note}", style="yellow")
    _done(out, as_json, {"coverage": _plain(found.rows), "notes": list(found.notes)})


@app.command("safetensors")
def safetensors(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A model folder whose weights are *.bin files.")],
    out: Out,
    strip: Annotated[
        str,
        typer.Option("--strip", help="Leave out what all names begin with, such as module.; of *.safetensors too."),
    ] = "",
    as_json: options.Json = False,
) -> None:
    """Rewrite a folder of pickled weights as safetensors; nothing of it is unpickled or executed."""
    _begin(as_json, f"rewriting {folder} as {out}")
    from segue.checkpoints import pickled_folder

    with _progress_bars(as_json) as progress:
        count = pickled_folder.rewrite(at_home(folder), at_home(out), strip=strip, progress=progress)
    _done(out, as_json, {"tensors": count})


@app.command("export")
def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model folder, a hub id, or demo.", callback=options.check_model),
    ],
    out: Out,
    dtype: Dtype = "bf16",
    overwrite: Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write a model in the official Hugging Face layout, which the original code reads with its own modelling files."""
    _begin(as_json, f"exporting {model} as {out}")
    from segue.checkpoints import convert

    with _progress_bars(as_json) as progress:
        made_from = convert.export(
            _folder(model), convert.Target(folder=out, dtype=dtype, overwrite=overwrite, progress=progress)
        )
    _done(out, as_json, {"made_from": made_from})
    if not as_json:
        say(f"before the original code can load it, copy its *.py files into {out}: docs/convert.md says which")


@app.command("merge")
def merge(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint of `segue train`, or a run: its best one.")
    ],
    out: Out,
    dtype: Dtype = "bf16",
    overwrite: Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write a training checkpoint and its base as one model folder, with what was learned folded into the weights."""
    _begin(as_json, f"merging {checkpoint} and its base as {out}")
    from segue.checkpoints.merge import merge as merge_checkpoint

    with _progress_bars(as_json) as progress:
        merged = merge_checkpoint(checkpoint, out, dtype=dtype, overwrite=overwrite, progress=progress)
    if not as_json:
        say(f"from {merged.checkpoint}: {merged.folded} layers with LoRA, {merged.placed} other tensors")
    counts = {"folded": merged.folded, "placed": merged.placed, "model_hash": merged.model_hash}
    _done(out, as_json, {"checkpoint": str(merged.checkpoint), **counts})


@app.command("init")
def init(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="The model to change: a folder, a hub id, or demo.", callback=options.check_model
        ),
    ],
    out: Out,
    source: Annotated[str, typer.Option("--from", help="The checkpoint to take from: a folder, a hub id or a .pth.")],
    components: Annotated[
        str | None,
        typer.Option("--components", help="What to take over, such as mask_decoder,seg_projector; else everything."),
    ] = None,
    min_coverage: Annotated[
        float,
        typer.Option("--min-coverage", min=0.0, max=1.0, help="Share of each named component that must fit."),
    ] = 1.0,
    dtype: Dtype = "bf16",
    overwrite: Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Transfer named components of one checkpoint into a model of perhaps another size, and tell what fitted."""
    _begin(as_json, f"transferring from {source} into {model}, as {out}")
    from segue.checkpoints import convert
    from segue.errors import ConfigError

    names = None if components is None else [name.strip() for name in components.split(",") if name.strip()]
    if names is None and min_coverage < 1:
        raise ConfigError("--min-coverage is for components that are named; add --components")
    options = convert.TransferOptions(components=names, min_coverage=min_coverage)
    path = Path(source) if Path(source).is_file() else _folder(source)
    with _progress_bars(as_json) as progress:
        result = convert.initialise(
            _folder(model),
            convert.Target(folder=out, dtype=dtype, overwrite=overwrite, progress=progress),
            path,
            options,
        )
    if not as_json:
        _account(result.rows, f"from {result.source}\ninto {result.target}")
        if result.kept:
            say(f"kept as they were: {', '.join(result.kept)}")
    _done(out, as_json, {"report": result.report()})


def _begin(as_json: bool, text: str) -> None:
    """Say what is done, before libraries are imported, which takes seconds."""
    if not as_json:
        say(text)


def _folder(model: str) -> Path:
    from segue.checkpoints import adapters
    from segue.checkpoints.locate import resolve
    from segue.errors import ConfigError

    folder = resolve(model)
    if adapters.find(folder) is not None:
        text = "is a training checkpoint or run, which stands on a base"
        raise ConfigError(f"{model} {text}; make one model of both first: segue convert merge {model} OUT")
    return folder


@contextmanager
def _progress_bars(hidden: bool) -> Iterator[Progress]:
    """A bar per stage that counts bytes, with the time left; a line per stage where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bars(*columns, console=STDERR, transient=True, disable=hidden or not STDERR.is_terminal) as bars:
        tasks: dict[tuple[str, int], Any] = {}

        def progress(stage: Literal["hash", "write", "verify"], done: int, total: int) -> None:
            if (stage, total) not in tasks:
                tasks[stage, total] = bars.add_task(_STAGES[stage], total=total)
                if not (hidden or STDERR.is_terminal):
                    say(f"{_STAGES[stage]}, {size(total)}", style="dim")
            bars.advance(tasks[stage, total], done)

        yield progress


def _account(rows: Sequence[Coverage], title: str) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), title=Text(title), title_justify="left", title_style="")
    for heading in _PARTS:
        table.add_column(heading, justify="left" if heading == "component" else "right", no_wrap=True)
    for row in rows:
        counts = (f"{number:,}" for number in (row.loaded, row.mismatched, row.absent, row.unused, row.loaded_numbers))
        table.add_row(Text(row.component), *counts, f"{row.fraction:.1%}")
    VisibleConsole().show(table)


def _plain(rows: Sequence[Coverage]) -> list[dict[str, Any]]:
    from segue.checkpoints.coverage import plain

    return plain(rows)


def _done(out: Path, as_json: bool, result: Mapping[str, Any]) -> None:
    if as_json:
        print(json.dumps({"folder": str(out), **result}))
    else:
        say(f"{out} is written, and what was read back is what was meant", style="bold green")
