"""`segue inspect`: what a model folder is, from its headers alone; and the model's side of `segue doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from segue.cli import options
from segue.cli.console import STDERR, VisibleConsole
from segue.progress import size
from segue.reading import at_home

if TYPE_CHECKING:
    from segue.checkpoints.inspection import Check, FolderReport, TensorScan

USABLE, UNUSABLE = 0, 2
_STYLES = {"ok": "green", "note": "dim", "problem": "bold red"}
_SHOWN_FAULTS = 10


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model folder, or a hub id.", callback=options.check_model)
    ],
    as_json: options.Json = False,
) -> None:
    """Tell what a model folder is, from its headers alone. The exit code is 0 where it would load, else 2."""
    from segue.checkpoints import inspection

    folder, learned = _base(_folder(model))
    found = inspection.report(folder)
    if as_json:
        print(json.dumps({**_plain(found), "trained": learned}))
    else:
        console = VisibleConsole()
        if learned is not None:
            told = ", ".join(f"{name} {value}" for name, value in learned.items() if value)
            console.print(Text(f"A training checkpoint ({told}). Its base:"), soft_wrap=True)
        console.show(_facts(found))
        console.show(_parts(found))
        _verdict(console, found)
    raise typer.Exit(USABLE if found.is_usable else UNUSABLE)


def report(target: str, *, as_json: bool) -> int:
    """Check a model folder thoroughly, without running the model; prints what is found and returns the exit code.

    Beyond what `segue inspect` sees, every tensor is read and the tokenizer is loaded.
    """
    from segue.checkpoints import inspection

    found = inspection.report(_folder(target))
    checks = list(_checks(found, hidden=as_json))
    is_sound = all(check.status != "problem" for check in checks)
    if as_json:
        listed = [{"name": check.name, "status": check.status, "value": check.value} for check in checks]
        print(json.dumps({"usable": is_sound, "checks": listed, "model": _plain(found)}))
        return USABLE if is_sound else UNUSABLE
    console = VisibleConsole()
    console.show(_facts(found))
    console.print()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for check in checks:
        table.add_row(check.name, Text(check.status, _STYLES[check.status]), Text(check.value))
    console.show(table)
    verdict = "This model is sound." if is_sound else "This model cannot be used as it is."
    console.print(Text(f"\n{verdict}", "bold green" if is_sound else "bold red"))
    return USABLE if is_sound else UNUSABLE


def _folder(target: str) -> Path:
    folder = at_home(target)
    if folder.is_dir():
        return folder
    from segue.checkpoints.locate import resolve

    return resolve(target)


def _base(folder: Path) -> tuple[Path, dict[str, Any] | None]:
    """The folder of the weights, and what a training checkpoint says of itself if they are the base of one."""
    from segue.checkpoints import adapters
    from segue.checkpoints.locate import base_of

    learned = None
    while (checkpoint := adapters.find(folder)) is not None:
        record = adapters.read(checkpoint)
        learned = learned or {"checkpoint": str(checkpoint), **record.summary()}
        folder = base_of(checkpoint, record)
    return folder, learned


def _plain(found: FolderReport) -> dict[str, Any]:
    return {
        **asdict(found),
        "folder": str(found.folder),
        "parameters": found.parameters,
        "usable": found.is_usable,
    }


def _facts(found: FolderReport) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in _rows(found):
        table.add_row(name, Text(value))
    return table


def _rows(found: FolderReport) -> Iterator[tuple[str, str]]:
    yield "folder", f"{found.folder}, {size(found.folder_bytes)}"
    if found.architecture:
        yield "model", f"{'' if found.is_exact else 'like '}{found.architecture}: {found.found}"
    yield "family", f"{found.family or 'unknown'}{f', {found.layout} layout' if found.layout else ''}"
    if found.template:
        yield "template", found.template
    if found.rows:
        heads = "the head repeats them" if found.is_tied else "the head has its own"
        yield "vocabulary", f"{found.rows:,} embedding rows, {heads}"
    if found.files:
        files = f"{len(found.files)} file{'s' * (len(found.files) > 1)}"
        yield "weights", f"{files}, {size(found.weight_bytes)}, {found.parameters:,} numbers"
    if found.memory:
        yield "to load", "; ".join(f"{name} {size(nbytes)}" for name, nbytes in found.memory.items())
        for number, (work, sizes) in enumerate(found.working_memory.items()):
            needs = "; ".join(f"{name} {size(nbytes)}" for name, nbytes in sizes.items())
            yield "" if number else "to run", f"about {needs} more, for {work}"
        yield "masks", _masks(found.policy)
    if found.code:
        yield "code", f"{', '.join(found.code)}: present, never executed"
    if found.pickles:
        yield "pickles", f"{', '.join(found.pickles)}: present, never read"
    if found.lineage is not None:
        kept = _without_digests(found.lineage)
        told = yaml.safe_dump(kept, default_flow_style=None, sort_keys=False, allow_unicode=True, width=66)
        yield "lineage", told.rstrip()


def _masks(policy: str | None) -> str:
    if policy is None:
        return "none, because it has no grounder: it answers in words"
    if policy == "consistent":
        return "videos by policy consistent, because it has two mask decoders"
    return "videos by policy upstream, because it has one mask decoder; --sam2 FILE gives SAM 2's own, for consistent"


def _without_digests(lineage: Any) -> Any:
    """A lineage without the long lists in it: the hash of a model stands for them."""
    if not isinstance(lineage, dict):
        return lineage
    return {name: _without_digests(value) for name, value in lineage.items() if name not in ("files", "groups")}


def _parts(found: FolderReport) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("part")
    for heading in ("tensors", "numbers", "share", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("type")
    for part in found.components:
        share = part.parameters / max(found.parameters, 1)
        table.add_row(
            Text(part.name),
            f"{part.tensors:,}",
            f"{part.parameters:,}",
            f"{share:.1%}",
            size(part.nbytes),
            ", ".join(part.dtypes),
        )
    return table


def _verdict(console: VisibleConsole, found: FolderReport) -> None:
    if found.is_usable:
        console.print(Text("Complete: every tensor has its place, and every place its tensor.", "bold green"))
        return
    console.print(Text("This folder cannot be used as it is:", "bold red"))
    for line in found.problems:
        console.print(Text(line), soft_wrap=True)


def _checks(found: FolderReport, *, hidden: bool) -> Iterator[Check]:
    from segue.checkpoints.inspection import Check, check_tokenizer

    if found.is_usable:
        yield Check("headers", "ok", "every tensor has its place, and every place its tensor")
        yield from check_tokenizer(found.folder)
    else:
        yield Check("headers", "problem", "\n".join(found.problems))
    if found.components:
        yield from _scan(found, hidden=hidden)
    for name, files, fate in (("code", found.code, "never executed"), ("pickles", found.pickles, "never read")):
        if files:
            yield Check(name, "note", f"{', '.join(files)}: {fate}")
    if (found.folder / "generation_config.json").is_file():
        yield Check(
            "generation", "note", "generation_config.json is not used: answers are greedy unless asked otherwise"
        )


def _scan(found: FolderReport, *, hidden: bool) -> Iterator[Check]:
    """Read every tensor, with a bar that counts bytes, and say what was wrong with them."""
    from segue.checkpoints.inspection import Check, scan
    from segue.errors import CheckpointError

    tensors: list[TensorScan] = []
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=STDERR, transient=True, disable=hidden or not STDERR.is_terminal) as progress:
        task = progress.add_task("reading", total=found.weight_bytes)
        try:
            for tensor in scan(found.folder):
                tensors.append(tensor)
                progress.advance(task, tensor.nbytes)
        except CheckpointError as error:
            yield Check("tensors", "problem", str(error))
            return
    bad = [tensor for tensor in tensors if tensor.fault and not tensor.is_zero]
    if bad:
        yield Check("tensors", "problem", _listed(bad))
    else:
        yield Check("tensors", "ok", f"{len(tensors):,} read, all numbers finite")
    if zero := [tensor for tensor in tensors if tensor.is_zero]:
        yield Check("tensors", "note", _listed(zero))


def _listed(tensors: Sequence[TensorScan]) -> str:
    lines = [f"{tensor.name}: {tensor.fault}" for tensor in tensors[:_SHOWN_FAULTS]]
    more = len(tensors) - len(lines)
    return "\n".join([*lines, f"and {more} more"] if more else lines)
