"""A run over many inputs: each has a result or a reason why not, and what an earlier run has done is not done again.

Whoever runs it (the command line, a server, a worker) says how objects are found, and is told of each input.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

from segue import processes
from segue.errors import ConfigError, LimitError, MediaError, SegueError
from segue.files import InUseError
from segue.jobs import inputs, manifest
from segue.jobs.manifest import Manifest, Record, Shard
from segue.jobs.stored import Source, Stored
from segue.media import open_media
from segue.media.ahead import do_behind
from segue.output.results import ResultWriter
from segue.types import Answer, Event, Finished, Media

Segment = Callable[[Media], Iterator[Event]]
"""Finds the objects asked for in a medium: pieces of text, the objects, their masks frame by frame, the answer."""

AHEAD = 16
"""Inputs that each worker may be ahead of the first that is not done."""
_LOADED: list[Callable[[], Segment]] = []
"""What loads the model of a worker; set once when its process starts."""


Attempt = Callable[[Source, Path], Record | Future[Record]]
"""Does a source, its result going to a folder; gives its record, now or later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """What to do with every input: where results go, what is written, and the settings that decide the result.

    `settings` is JSON; a result is used again only where they are the same. Of these, where they are there, `phrases`
    are what is asked for, and `first` and `window` say how media are opened, as `segue.media.open_media` takes them.
    `overwrite` does finished inputs again. `shard` (i, n) does inputs i, i + n, i + 2n ... alone, from 0, and other
    processes or machines the others, into the same folder.
    """

    out: Path
    formats: tuple[str, ...]
    settings: Mapping[str, Any]
    overwrite: bool = False
    shard: tuple[int, int] | None = None

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that stand for the settings."""
        return inputs.digest(json.dumps(self.settings, sort_keys=True))[:16]

    @property
    def phrases(self) -> tuple[str, ...]:
        """What is asked for; nothing where every input has its own question."""
        return tuple(self.settings.get("phrases", ()))


Attempting = Callable[[BatchJob, Callable[[], Segment]], AbstractContextManager[tuple[Attempt, int]]]
"""Where sources are done: what does one, and how many may be begun ahead of the first that is not done."""


def run(
    sources: Sequence[Source],
    job: BatchJob,
    load: Callable[[], Segment],
    where: Attempting | int = 1,
) -> Generator[tuple[Record, bool], None, None]:
    """Segment every source that has no result under these settings yet; one that fails does not stop the rest.

    Gives the record of each source as it is done with, and whether an earlier run has done it. `load` is called once,
    when the first source to be done has been opened; what it raises ends the run. Of a job that is a shard, only its
    part of the sources is done; names of folders are given as in one run over all. `where` is how many
    processes do the sources, each with a model, or a cluster that does them (`segue.jobs.ray_runner.on`); unless it is
    1, `load` must be picklable. Records come in the same order, and this process lists them.

    Raises: SegueError, if the model or the output folder cannot be used, or a worker dies.
    """
    doing = partial(_attempting, workers=where) if isinstance(where, int) else where
    with manifest.disk_errors(job.out), _opened(sources, job) as known, doing(job, load) as (do, ahead):
        first, step = job.shard or (0, 1)
        places = dict(list(known.assign(sources).items())[first::step])
        if not job.overwrite:
            _check_repeated(places, known, job)
        waiting: deque[tuple[Record | Future[Record], bool]] = deque()

        def first_done() -> tuple[Record, bool]:
            one, is_old = waiting.popleft()
            record = one.result() if isinstance(one, Future) else one
            if not is_old:
                known.add(record)
            return record, is_old

        for source, folder in places.items():
            old = None if job.overwrite else _finished(source, known, job)
            waiting.append((do(source, folder), False) if old is None else (old, True))
            if len(waiting) > ahead:
                yield first_done()
        while waiting:
            yield first_done()


def merge(sources: Sequence[Source], job: BatchJob) -> list[Source] | None:
    """The sources that no shard has done yet; once there is none, all are listed in one manifest, in their order, as
    by one run over them. None, if all are done and another shard still holds the folder: it merges.

    Raises: DataError, if the shards' lists do not fit together.
    """
    listed = Manifest(job.out, job.phrases)
    listed.adopt()
    left = listed.missing(sources, job.fingerprint)
    if not left:
        try:
            with manifest.disk_errors(job.out), manifest.opened(job.out, job.phrases) as known:
                known.put_in_order(sources)
        except InUseError:
            return None
    return left


def _opened(sources: Sequence[Source], job: BatchJob) -> AbstractContextManager[Manifest]:
    if job.shard is None:
        return manifest.opened(job.out, job.phrases)
    run = inputs.digest(job.fingerprint, *map(str, sources))[:16]
    return manifest.opened_shard(job.out, job.phrases, Shard(*job.shard, run))


def _check_repeated(places: Mapping[Source, Path], known: Manifest, job: BatchJob) -> None:
    """Refuse to replace results of the same question under other settings.

    Raises: ConfigError, saying which settings differ.
    """
    for source, folder in places.items():
        record = known.records.get((str(source), known.asked))
        if record is None or (record["status"] == "ok" and record["settings"] == job.fingerprint):
            continue
        old = manifest.read_result(folder)
        if old is None or old["fingerprint"] == job.fingerprint:
            continue
        settings = json.loads(json.dumps(job.settings))
        differing = [name for name, value in settings.items() if old["settings"].get(name) != value]
        raise ConfigError(
            f"{folder} holds the answer to the same phrases under other settings ({', '.join(differing)}); "
            "say --overwrite to replace it, or give another -o"
        )


def _finished(source: Source, known: Manifest, job: BatchJob) -> Record | None:
    """The record of a source whose result still holds: same settings, same content, folder in place."""

    def holds(record: Record) -> bool:
        if record["settings"] != job.fingerprint:
            return False
        try:
            if inputs.stamp(source) == record["stamp"]:
                return True
            return isinstance(source, Path) and inputs.content_hash(source) == record["sha256"]
        except (OSError, MediaError):
            return False  # it is gone or closed to us, which opening it will say

    return known.finished(source, holds)


@contextmanager
def _attempting(job: BatchJob, load: Callable[[], Segment], *, workers: int) -> Iterator[tuple[Attempt, int]]:
    """Does a source here and now, or in one of several processes."""
    if workers == 1:
        loaded = cache(load)
        yield lambda source, folder: attempt(source, folder, job, loaded), 0
        return
    with processes.pool(workers, _begin, load) as pool:
        yield lambda source, folder: pool.submit(_work, source, folder, job), AHEAD * workers


def _begin(load: Callable[[], Segment]) -> None:
    _LOADED.append(cache(load))


def _work(source: Source, folder: Path, job: BatchJob) -> Record:
    with manifest.disk_errors(job.out):
        return attempt(source, folder, job, _LOADED[0])


def attempt(source: Source, folder: Path, job: BatchJob, load: Callable[[], Segment]) -> Record:
    """Do one source; the record says how it went. What is no fault of the source (model, disk) is raised.

    One that is stored is copied beside the results meanwhile, and named by its URL in whatever is told of it.
    """
    started = perf_counter()
    path = source.place(job.out) if isinstance(source, Stored) else source
    origin: dict[str, Any] = {}
    failed = partial(manifest.failure, source, asked=job.phrases, folder=folder, settings=job.fingerprint)

    def failure(problem: SegueError) -> Record:
        return failed(SegueError(str(problem).replace(str(path), str(source))), seconds=_since(started))

    with ExitStack() as copies:
        try:
            if isinstance(source, Stored):
                origin = {"path": source.url, "stamp": copies.enter_context(source.copied(path))}
            media = open_media(path, first=job.settings.get("first", False), window=job.settings.get("window"))
        except (LimitError, MediaError) as problem:
            return failure(problem)
        segment = load()
        started = perf_counter()
        try:
            return _write(segment(media), media, _describe_source(media) | origin, folder, job, started)
        except SegueError as problem:
            if manifest.is_disk_error(problem.__cause__):
                raise
            return failure(problem)


def _write(
    events: Iterator[Event], media: Media, source: Mapping[str, Any], folder: Path, job: BatchJob, started: float
) -> Record:
    answer: Answer | None = None
    with ResultWriter(folder, media, job.formats) as writer:
        with do_behind(writer.write) as write:
            for event in events:
                write(event)
                if isinstance(event, Finished):
                    answer = event.answer
        if answer is None:
            raise RuntimeError("the engine's stream ended without an answer")
        more = {"source": dict(source), "settings": dict(job.settings), "fingerprint": job.fingerprint}
        result = writer.finish(answer, **more, seconds=_since(started))
    return manifest.record_of(result, folder.name)


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
    shape: dict[str, Any] = {
        "kind": media.kind,
        "height": height,
        "width": width,
        "frames": media.count,
        "fps": media.fps,
    }
    shape |= {"window": media.window, "notes": list(media.notes)}
    return {"path": str(path), **key, **shape}


def _since(started: float) -> float:
    return round(perf_counter() - started, 3)
