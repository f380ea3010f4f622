"""`segue segment`: find what is named in words, in one input or in many, and pick up where a killed run stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segue.cli import options
from segue.cli.console import Bar, error, say
from segue.errors import ConfigError, MediaError, SegueError
from segue.jobs import inputs
from segue.types import Answer, Event, Finished, FrameMasks, Media

if TYPE_CHECKING:
    from segue.jobs.manifest import Manifest, Record
else:
    # The manifest brings renderers and codecs along, which `--help` can do without.
    Manifest, Record = Any, dict[str, Any]

Segment = Callable[[Media], Iterator[Event]]
"""Finds the objects asked for in a medium: pieces of text, the objects, their masks frame by frame, the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to do with every input: where results go, what is written, and the settings that decide the result.

    `settings` is JSON; a result is used again only where they are the same. `overwrite` does finished inputs again.
    """

    out: Path
    formats: tuple[str, ...]
    settings: dict[str, Any]
    overwrite: bool = False

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that stand for the settings."""
        return inputs.digest(json.dumps(self.settings, sort_keys=True))[:16]


@dataclass(slots=True)
class Tally:
    """How a run went: inputs done now, done by an earlier run, and failed."""

    done: int = 0
    skipped: int = 0
    failed: int = 0


@options.expanded
def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="An image, a video, a folder, a quoted pattern ('photos/*.jpg') or a .txt list of paths. A folder of "
            "images is one video if they are named by evenly spaced numbers of one width (00000.jpg, 00001.jpg ...).",
        ),
    ],
    phrases: Annotated[list[str], typer.Argument(metavar="PHRASE...", help="What to find, each in its own quotes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write results into.")],
    *,
    loading: options.Loading,
    answering: options.Answering,
    prefill: Annotated[
        str | None,
        typer.Option("--prefill", help="The model's reply up to and including [SEG]; saves generating it."),
    ] = None,
    formats: options.Formats = options.FORMATS,
    folder_kind: Annotated[
        inputs.FolderKind, typer.Option("--as", help="Take folders as one video each, or as images.")
    ] = "auto",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many inputs.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do finished inputs again.")] = False,
    as_json: options.Json = False,
) -> None:
    """Find what is named in words; write masks, overlays and scores.

    Results go to a folder per input, with a manifest.jsonl beside them. The
    same command again goes on where a run stopped and leaves finished inputs
    alone. The exit code is 2 if any input failed.
    """
    sources = inputs.find(source, folder_kind=folder_kind)[:limit]
    _check_phrases(phrases)
    wanted = options.parse_formats(formats)
    keeps_logits = "logits" in wanted
    how = {**asdict(answering), "prefill": prefill, "keep_logits": keeps_logits, "keep_masks": keeps_logits}

    def load() -> Segment:
        from segue import engine

        settings = engine.Options(**how)
        loaded = loading.load()
        return lambda media: loaded.segment(media, phrases, settings)

    job = Job(
        out=output,
        formats=wanted,
        overwrite=overwrite,
        settings={"phrases": phrases, "formats": wanted, **_weights(loading), **how},
    )
    raise typer.Exit(2 if _told(sources, job, load, as_json=as_json).failed else 0)


def _told(sources: Sequence[Path], job: Job, load: Callable[[], Segment], *, as_json: bool) -> Tally:
    """Run, and say how it went."""
    try:
        tally = run(sources, job, load, as_json=as_json)
    except KeyboardInterrupt:
        say("what is finished is kept; the same command goes on from there")
        raise
    if len(sources) > 1 or tally.skipped:
        say(f"{tally.done} done, {tally.skipped} done before, {tally.failed} failed: {job.out / 'manifest.jsonl'}")
    return tally


def run(sources: Sequence[Path], job: Job, load: Callable[[], Segment], *, as_json: bool = False) -> Tally:
    """Segment every source that has no result under these settings yet; one that fails does not stop the rest.

    `load` is called once, when the first source to be done has been opened; what it raises ends the run.

    Raises: SegueError, if the model or the output folder cannot be used.
    """
    from segue.jobs import manifest as manifests

    tally = Tally()
    load = cache(load)
    bar = Bar("inputs", hidden=as_json and sys.stdout.isatty(), failures_told=0)
    with manifests.disk_errors(job.out), manifests.opened(job.out) as manifest, bar:
        bar.start(len(sources))
        for source, folder in manifest.assign(sources).items():
            old = None if job.overwrite else _finished(source, manifest, job)
            record = old or _attempt(source, folder, job, load, bar)
            if not old:
                manifest.add(record)
            _report(record, tally, job.out, is_old=old is not None, as_json=as_json)
            bar.step(record["error"])
    return tally


def _finished(source: Path, manifest: Manifest, job: Job) -> Record | None:
    """The record of a source whose result still holds: same settings, same content, folder in place."""

    def holds(record: Record) -> bool:
        if record["settings"] != job.fingerprint:
            return False
        try:
            return bool(inputs.stamp(source) == record["stamp"] or inputs.content_hash(source) == record["sha256"])
        except OSError:
            return False  # it is gone or closed to us, which opening it will say

    return manifest.finished(source, holds)


def _attempt(source: Path, folder: Path, job: Job, load: Callable[[], Segment], bar: Bar) -> Record:
    """Do one source; the record says how it went. What is no fault of the source (model, disk) is raised."""
    from segue.jobs import manifest as manifests
    from segue.media import open_media

    started = perf_counter()
    failure = partial(manifests.failure, source, folder=folder, settings=job.fingerprint)
    try:
        media = open_media(source)
    except SegueError as problem:
        return failure(problem, seconds=_since(started))
    segment = load()
    bar.start_frames(source.name, media.count)
    try:
        return _write(segment(media), media, folder, job, bar)
    except SegueError as problem:
        if manifests.is_disk_error(problem.__cause__):
            raise
        return failure(problem, seconds=_since(started))


def _write(events: Iterator[Event], media: Media, folder: Path, job: Job, bar: Bar) -> Record:
    from segue.jobs.manifest import record_of
    from segue.output.results import ResultWriter

    started = perf_counter()
    source = _describe_source(media)
    answer: Answer | None = None
    with ResultWriter(folder, media, job.formats) as writer:
        for event in events:
            writer.write(event)
            if isinstance(event, FrameMasks):
                bar.step_frame()
            if isinstance(event, Finished):
                answer = event.answer
        if answer is None:
            raise RuntimeError("the engine's stream ended without an answer")
        result = writer.finish(
            answer, source=source, settings=job.settings, fingerprint=job.fingerprint, seconds=_since(started)
        )
    return record_of(result, folder.name)


def _report(record: Record, tally: Tally, out: Path, *, is_old: bool, as_json: bool) -> None:
    """Say how one input went: a line for people on stderr, with `as_json` the record on stdout too."""
    name = Path(record["source"]).name
    if record["status"] == "failed":
        tally.failed += 1
        error(record["error"] if name in record["error"] else f"{name}: {record['error']}")
    elif is_old:
        tally.skipped += 1
    else:
        tally.done += 1
        count = len(record["regions"])
        say(f"{name}: {count} object{'' if count == 1 else 's'} in {record['seconds']:.1f} s, {out / record['folder']}")
    if as_json:
        print(json.dumps({**record, "skipped": is_old}), flush=True)


def _describe_source(media: Media) -> dict[str, Any]:
    """Where a medium came from and what it is, with its content hash.

    Raises: MediaError, if it cannot be read any more.
    """
    path = media.source
    if not isinstance(path, Path):
        raise TypeError(f"only media opened from a path have a place in a manifest, not {type(path).__name__}")
    try:
        key = {"sha256": inputs.content_hash(path), "stamp": inputs.stamp(path)}
    except OSError as problem:
        raise MediaError(f"cannot read {path}: {problem.strerror}; check that it is still there") from problem
    height, width = media.size
    shape = {"kind": media.kind, "height": height, "width": width, "frames": media.count, "fps": media.fps}
    return {"path": str(path), **key, **shape}


def _check_phrases(phrases: Sequence[str]) -> None:
    """Refuse what a shell makes of an unquoted pattern, and empty words.

    Raises: ConfigError.
    """
    for phrase in phrases:
        if not phrase.strip():
            raise ConfigError("a phrase is empty; say what to find, for instance 'the red car'")
        if Path(phrase).suffix.lower() in inputs.SUFFIXES and Path(phrase).exists():
            raise ConfigError(
                f"the phrase {phrase!r} is a file; put a pattern in quotes so that it stays one INPUT ('photos/*.jpg')"
            )


def _weights(loading: options.Loading) -> dict[str, Any]:
    """Which numbers answer, as far as the options say: where they lie is no part of it."""
    sam2 = loading.sam2 and _identity(loading.sam2)
    return {"model": _identity(loading.model), "sam2": sam2, "dtype": loading.dtype, "quantize": loading.quantize}


def _identity(model: str) -> dict[str, str]:
    """What tells a model from another without reading its weights; a file or folder that changed is another."""
    folder = Path(model)
    if folder.is_file():
        return {"name": str(folder.resolve()), "files": inputs.digest(f"{folder.name} {inputs.stamp(folder)}")}
    if not folder.is_dir():
        return {"name": model}
    files = (f"{path.name} {inputs.stamp(path)}" for path in sorted(folder.iterdir()) if path.is_file())
    return {"name": str(folder.resolve()), "files": inputs.digest(*files)}


def _since(started: float) -> float:
    return round(perf_counter() - started, 3)
