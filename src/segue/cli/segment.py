"""`segue segment`: find what is named in words, in one input or in many, and pick up where a killed run stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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

Prefill = Annotated[
    str | None, typer.Option("--prefill", help="The model's reply up to and including [SEG]; saves generating it.")
]
FolderKind = Annotated[
    inputs.FolderKind,
    typer.Option("--as", help="Take folders as one video each, or as images; of animations then the first picture."),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Inputs that cannot be read are listed, and the exit code is still 0.")
]
WEAK = 0.5
"""Score below which an object is said to be weak."""
Segment = Callable[[Media], Iterator[Event]]
"""Finds the objects asked for in a medium: pieces of text, the objects, their masks frame by frame, the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to do with every input: where results go, what is written, and the settings that decide the result.

    `settings` is JSON; a result is used again only where they are the same. `overwrite` does finished inputs again.
    Its `first` and `window` say how media are opened, as `segue.media.open_media` takes them.
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
    prefill: Prefill = None,
    formats: options.Formats = options.FORMATS,
    folder_kind: FolderKind = "auto",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many inputs.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do finished inputs again.")] = False,
    skip_bad: SkipBad = False,
    window: options.Window = None,
    as_json: options.Json = False,
) -> None:
    """Find what is named in words; write masks, overlays and scores.

    Results go to a folder per input, with a manifest.jsonl beside them. The
    same command again goes on where a run stopped and leaves finished inputs
    alone. The exit code is 2 if any input failed.
    """
    skipped: list[inputs.Skipped] = []
    sources = inputs.find(source, folder_kind=folder_kind, skipped=skipped)[:limit]
    _tell_skipped(skipped)
    _check_phrases(phrases)
    wanted = options.parse_formats(formats)
    opening = {"window": options.parse_window(window), "first": folder_kind == "images"}
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
        settings={"phrases": phrases, "formats": wanted, **opening, **_weights(loading), **how},
    )
    failed = _told(sources, job, load, as_json=as_json).failed + sum(one.is_bad for one in skipped)
    raise typer.Exit(2 if failed and not skip_bad else 0)


def _tell_skipped(skipped: Sequence[inputs.Skipped]) -> None:
    """Say what of a folder is left out: images and videos that cannot be read one by one, everything else in a line."""
    for one in skipped:
        if one.is_bad:
            error(f"{one.path} is left out: {one.reason}")
    others = [one.path.name for one in skipped if not one.is_bad]
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        say(f"no images or videos, left out: {', '.join(others[:5])}{more}", style="dim")


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
    asked = job.settings["phrases"]
    with manifests.disk_errors(job.out), manifests.opened(job.out, asked) as manifest, bar:
        bar.start(len(sources))
        places = manifest.assign(sources)
        if not job.overwrite:
            _check_repeated(places, manifest, job)
        for source, folder in places.items():
            old = None if job.overwrite else _finished(source, manifest, job)
            record = old or _attempt(source, folder, job, load, bar)
            if not old:
                manifest.add(record)
            _report(record, tally, job.out, is_old=old is not None, as_json=as_json)
            bar.step(record["error"])
    return tally


def _check_repeated(places: Mapping[Path, Path], manifest: Manifest, job: Job) -> None:
    """Refuse to replace results of the same question under other settings.

    Raises: ConfigError, saying which settings differ.
    """
    from segue.jobs.manifest import read_result

    for source, folder in places.items():
        record = manifest.records.get((str(source), manifest.asked))
        if record is None or (record["status"] == "ok" and record["settings"] == job.fingerprint):
            continue
        old = read_result(folder)
        if old is None or old["fingerprint"] == job.fingerprint:
            continue
        settings = json.loads(json.dumps(job.settings))
        differing = [name for name, value in settings.items() if old["settings"].get(name) != value]
        raise ConfigError(
            f"{folder} holds the answer to the same phrases under other settings ({', '.join(differing)}); "
            "say --overwrite to replace it, or give another -o"
        )


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
    asked = job.settings["phrases"]
    failure = partial(manifests.failure, source, asked=asked, folder=folder, settings=job.fingerprint)
    try:
        media = open_media(source, first=job.settings["first"], window=job.settings["window"])
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
        count = sum(region["is_found"] is not False for region in record["regions"])
        say(f"{name}: {count} object{'' if count == 1 else 's'} in {record['seconds']:.1f} s, {out / record['folder']}")
        for note in record.get("notes", ()):
            say(f"  note: {note}", style="yellow")
        for line in _account(record):
            say(f"  {line}")
    if as_json:
        print(json.dumps({**record, "skipped": is_old}), flush=True)


def _account(record: Record) -> Iterator[str]:
    """What was made of each thing asked for, a line each."""
    for number, region in enumerate(record["regions"], start=1):
        phrase = region["phrase"] or f"object {number}"
        if region["is_found"] is False:
            yield f"{phrase}: not found ({_many(region['area'], 'pixel')} at most)"
            continue
        score = "no score" if region["score"] is None else f"score {region['score']:.2f}"
        weak = ", weak: look at it" if region["score"] is not None and region["score"] < WEAK else ""
        where = f" of the picture on {region['frames']} of {_many(record['frames'], 'frame')}"
        share = f"{region['share']:.1%}{where if record['frames'] > 1 else ' of the picture'}"
        yield f"{phrase}: {score}, {share}{weak}"
    named = [region["phrase"] for region in record["regions"]]
    yield from (f"{phrase}: not found" for phrase in record["not_found"] if phrase not in named)


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


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
    shape |= {"window": media.window, "notes": list(media.notes)}
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
