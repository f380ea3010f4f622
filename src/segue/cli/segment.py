"""`segue segment`: find what is named in words, in one input or in many, and pick up where a killed run stopped."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segue.cli import options
from segue.cli.console import Bar, error, one_line, say
from segue.errors import ConfigError
from segue.geometry.notation import check_prefill
from segue.jobs import inputs
from segue.options import Options
from segue.types import Event, FrameMasks, Media

if TYPE_CHECKING:
    # what runs brings renderers and codecs along, which `--help` can do without
    from segue.jobs.manifest import Record
    from segue.jobs.run import Attempting, BatchJob, Segment
    from segue.jobs.stored import Source

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
            help="An image, a video, a folder, a quoted pattern ('photos/*.jpg'), a .txt list of paths, or - for what "
            "is piped in; in an object store too (s3://bucket/photos, gs://, az://). A folder of images is one video "
            "if they are named by evenly spaced numbers of one width (00000.jpg, 00001.jpg ...).",
        ),
    ],
    phrases: Annotated[list[str], typer.Argument(metavar="PHRASE...", help="What to find, each in its own quotes.")],
    output: options.Output,
    *,
    loading: options.ModelOptions,
    answering: options.AnswerOptions,
    prefill: Prefill = None,
    formats: options.Formats = options.FORMATS,
    folder_kind: FolderKind = "auto",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many inputs.")] = None,
    workers: options.Workers = None,
    runner: Annotated[
        str,
        typer.Option(
            "--runner", help="local, ray, or ray://HOST:PORT: a model on each GPU of a Ray cluster, or each CPU."
        ),
    ] = "local",
    shard: options.Shard = None,
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
    _check_phrases(phrases)
    check_prefill(prefill)
    wanted = options.parse_formats(formats)
    from segue.jobs.run import BatchJob

    opening = {"window": options.parse_window(window), "first": folder_kind == "images"}
    keeps_logits = "logits" in wanted
    how = {**asdict(answering), "prefill": prefill, "keep_logits": keeps_logits, "keep_masks": keeps_logits}

    job = BatchJob(
        out=output,
        formats=wanted,
        overwrite=overwrite,
        shard=options.parse_shard(shard),
        settings={"phrases": phrases, "formats": wanted, **opening, **_weights(loading), **how},
    )
    skipped: list[inputs.Skipped] = []
    with _piped(source) as place:
        sources = inputs.find(place, folder_kind=folder_kind, skipped=skipped)[:limit]
        _tell_skipped(skipped)
        cluster = _cluster(runner, workers)
        count = 0 if cluster else options.chosen_workers(workers, lambda: len(sources), loading.model, loading.device)
        loaded = partial(_loaded, loading, phrases, how, is_told=count == 1)
        if count != 1:
            loading.tell_limits()
        tally = _told(sources, job, loaded, cluster or count, as_json=as_json)
        failed = tally.failed + sum(one.is_bad for one in skipped)
    raise typer.Exit(2 if failed and not skip_bad else 0)


def _cluster(runner: str, workers: int | None) -> Attempting | None:
    """Where a run is done that is not done on this machine's processes.

    Raises: ConfigError.
    """
    if runner == "local":
        return None
    from segue.jobs import ray_runner

    if workers is not None:
        raise ConfigError("--workers are processes of this machine, and --runner ray has its own; give one of them")
    return ray_runner.on(runner)


def _loaded(loading: options.ModelOptions, phrases: Sequence[str], how: Mapping[str, Any], *, is_told: bool) -> Segment:
    """The model that answers, ready to find these phrases; `is_told` says what its answers are worth."""
    settings = Options(**how)
    if is_told:
        loading.tell_limits()
    loaded = loading.load()
    return lambda media: loaded.stream_segment(media, phrases, settings)


@contextmanager
def _piped(source: str) -> Iterator[str]:
    """The place of INPUT: its own; of what is piped in, a file that is removed afterwards, named by its content."""
    if source not in options.PIPED:
        yield source
        return
    with TemporaryDirectory() as folder:
        content = options.read_piped()
        path = Path(folder) / f"stdin-{hashlib.sha256(content).hexdigest()[:8]}"
        path.write_bytes(content)
        yield str(path)


def _tell_skipped(skipped: Sequence[inputs.Skipped]) -> None:
    """Say what of a folder is left out: images and videos that cannot be read one by one, everything else in a line."""
    for one in skipped:
        if one.is_bad:
            error(f"{one.path} is left out: {one.reason}")
    others = [one.path.name for one in skipped if not one.is_bad]
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        say(one_line(f"no images or videos, left out: {', '.join(others[:5])}{more}"), style="dim")


def _told(
    sources: Sequence[Source], job: BatchJob, load: Callable[[], Segment], where: Attempting | int, *, as_json: bool
) -> Tally:
    """Run, and say how it went."""
    try:
        tally = run(sources, job, load, where, as_json=as_json)
    except KeyboardInterrupt:
        say("what is finished is kept; the same command goes on from there")
        raise
    if job.shard is not None:
        _merge(sources, job)
    if len(sources) > 1 or tally.skipped:
        listed = job.out / "manifest.jsonl"  # which the last shard to end makes
        place = listed if listed.exists() else job.out
        say(f"{tally.done} done, {tally.skipped} done before, {tally.failed} failed: {place}")
    return tally


def _merge(sources: Sequence[Source], job: BatchJob) -> None:
    """Make one list of what all shards have done, if this one is the last, and say which it is."""
    from segue.jobs.run import merge

    left = merge(sources, job)
    if left:
        total = _many(len(sources), "input")
        are = "is" if len(left) == 1 else "are"
        say(f"{len(left):,} of {total} {are} other shards' work; the last to end lists all in one file")
    elif left is not None:
        say(f"all shards are done: {_many(len(sources), 'input')} listed, none missing, none twice")


def run(
    sources: Sequence[Source],
    job: BatchJob,
    load: Callable[[], Segment],
    where: Attempting | int = 1,
    *,
    as_json: bool = False,
) -> Tally:
    """Segment every source as `segue.jobs.run.run` does, and tell how each went; one worker also tells each frame.

    `where` is a cluster, or how many workers there are.

    Raises: SegueError, if the model or the output folder cannot be used.
    """
    from segue.jobs.run import run as run_job

    tally = Tally()
    with Bar("inputs", hidden=as_json and sys.stdout.isatty(), failures_told=0) as bar:
        first, step = job.shard or (0, 1)
        bar.start(len(sources[first::step]))
        watched = load if where != 1 else lambda: _watched(load(), bar)
        with closing(run_job(sources, job, watched, where)) as records:
            for record, is_old in records:
                _report(record, tally, job.out, is_old=is_old, as_json=as_json)
                bar.step(record.get("error"))
    return tally


def _watched(segment: Segment, bar: Bar) -> Segment:
    """Finds the same, frame by frame on a bar."""

    def watched(media: Media) -> Iterator[Event]:
        bar.start_frames(media.name, media.count)
        for event in segment(media):
            if isinstance(event, FrameMasks):
                bar.step_frame()
            yield event

    return watched


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
        count = sum(bool(region["is_found"]) for region in record["regions"])
        found = f"{_many(count, 'object')} in {record['seconds']:.1f} s, {out / record['folder']}"
        say(one_line(f"{name}: {found}"))
        for note in record.get("notes", ()):
            say(f"  note: {note}", style="yellow")
        for line in _account(record):
            say(one_line(f"  {line}"))
    if as_json:
        print(json.dumps({**record, "skipped": is_old}), flush=True)


def _account(record: Record) -> Iterator[str]:
    """What was made of each thing asked for, a line each."""
    for number, region in enumerate(record["regions"], start=1):
        phrase = region["phrase"] or f"object {number}"
        if region["is_found"] is None:
            yield f"{phrase}: said to be at {region['box']}, without a mask"
            continue
        if region["is_found"] is False:
            yield f"{phrase}: not found ({_many(region['area'], 'pixel')} at most)"
            continue
        score = "no score" if region["score"] is None else f"score {region['score']:.2f}"
        weak = ", weak: probably not there" if region["score"] is not None and region["score"] < WEAK else ""
        where = f" of the picture on {region['frames']} of {_many(record['frames'], 'frame')}"
        share = f"{region['share']:.1%}{where if record['frames'] > 1 else ' of the picture'}"
        yield f"{phrase}: {score}, {share}{weak}"
    named = [region["phrase"] for region in record["regions"]]
    yield from (f"{phrase}: not found" for phrase in record["not_found"] if phrase not in named)


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


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


def _weights(loading: options.ModelOptions) -> dict[str, Any]:
    """Which numbers answer, as far as the options say: where they lie is no part of it."""
    sam2 = loading.sam2 and _identity(loading.sam2)
    choices = {name: getattr(loading, name) for name in ("dtype", "quantize", "quantize_kv")}
    return {"model": _identity(loading.model), "sam2": sam2, **choices}


def _identity(model: str) -> dict[str, str]:
    """What tells a model from another without reading its weights; a file or folder that changed is another."""
    folder = Path(model)
    if folder.is_file():
        return {"name": str(folder.resolve()), "files": inputs.digest(f"{folder.name} {inputs.stamp(folder)}")}
    if not folder.is_dir():
        return {"name": model}
    files = (f"{path.name} {inputs.stamp(path)}" for path in sorted(folder.iterdir()) if path.is_file())
    return {"name": str(folder.resolve()), "files": inputs.digest(*files)}
