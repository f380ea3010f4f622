"""Asks a model every question of a benchmark, keeps each answer as it comes, and goes on where it was stopped.

Questions about one medium are asked in one go, so that a clip is decoded and encoded once; the next media are decoded
meanwhile. Media are dealt out to shards in turn: medium i belongs to shard i mod n.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, fields, replace
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from segue.data.base import Dataset, rng_for
from segue.datasets import DATASETS
from segue.engine import Options
from segue.errors import ConfigError, DataError, SegueError
from segue.evals.base import Benchmark
from segue.evals.run import answer_store, rows
from segue.files import alone, atomic_path
from segue.media import read_frames, read_image
from segue.types import Answer, Media, Message, Sample

log = logging.getLogger(__name__)

RUN = "run.json"
FORMAT = 1
AT_ONCE = 32
"""Questions about one medium that are asked together at most."""
HOPELESS = 20
"""A run whose first so many questions all fail is given up."""
_DECODED = 1 << 29  # bytes of decoded pixels that are held for one medium; longer clips are decoded as they are read


@runtime_checkable
class Asked(Protocol):
    """What is evaluated: a `segue.Engine`, or anything else that answers several questions about one medium."""

    lineage: dict[str, Any]

    def answer_each(self, dialogues: Sequence[Sequence[Message]], options: Options) -> Sequence[Answer]:
        """An answer to each dialogue.

        Raises: SegueError, if one of them cannot be asked.
        """
        ...


@runtime_checkable
class Watcher(Protocol):
    """Is told how a run goes on."""

    def start(self, total: int, done: int) -> None:
        """So many questions are to be answered, so many of them are."""
        ...

    def step(self, failure: str | None) -> None:
        """One more is answered, or failed for this reason."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A benchmark to run: its data, the folder for its results, and what is asked of it.

    `settings` are fields of `segue.Options` that are asked for beside those of the benchmark; changing one that the
    benchmark fixes makes another protocol of it. `limit` takes the first rows alone. `shard` is (i, n), from 0.
    """

    benchmark: Benchmark
    data: Path
    out: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    shard: tuple[int, int] = (0, 1)

    @property
    def options(self) -> Options:
        """How questions are asked.

        Raises: ConfigError, for an option that is none or out of range.
        """
        wanted = {**self.benchmark.settings, **self.settings}
        if unknown := sorted(set(wanted) - {one.name for one in fields(Options)}):
            raise ConfigError(f"{self.benchmark.name} sets {', '.join(unknown)}, which no answer knows")
        return Options(**wanted)

    @property
    def protocol(self) -> str:
        """The protocol, with what was changed of it."""
        fixed = self.benchmark.settings
        changed = [
            f"{name}={value}" for name, value in sorted(self.settings.items()) if fixed.get(name, value) != value
        ]
        return self.benchmark.protocol + (f" ({', '.join(changed)})" if changed else "")


@dataclass(frozen=True, slots=True)
class _Question:
    """A row that is to be asked; without a sample it cannot be, for the reason `failure`."""

    index: int
    sample: Sample | None
    failure: SegueError | None = None


def open_data(job: Job) -> Dataset:
    """The benchmark's rows.

    Raises: DataError, ConfigError, if they are not there; DataError, if there is none.
    """
    benchmark = job.benchmark
    dataset: Dataset = DATASETS[benchmark.dataset](job.data, benchmark.split, **benchmark.options)
    if not len(dataset):
        raise DataError(f"{benchmark.name} has no rows below {job.data}")
    return dataset


def run(job: Job, dataset: Dataset, load: Callable[[], Asked], watcher: Watcher) -> None:
    """Ask what is not yet answered of this job's shard.

    A question that fails is written down as failed and asked again by the next run; it has no score.

    Raises: ConfigError, if the folder holds results of something else, or another process writes this shard;
        DataError, if rows there are damaged; SegueError, if the first `HOPELESS` questions all fail.
    """
    total, asked = count(job, dataset), load()
    job.out.mkdir(parents=True, exist_ok=True)
    check_run(job, asked.lineage, len(dataset))
    path = job.out / rows.file_name(job.shard)
    path.touch()
    with alone(path), ExitStack() as others:
        for other in rows.files(job.out):
            if rows.shards_of(other) != job.shard[1]:
                others.enter_context(alone(other, shared=True))
        rows.mend(path)
        done = {index for index, line in rows.gathered(job.out, _brief).items() if line["status"] == "ok"}
        mine = shard_of(units(dataset, total), job.shard)
        watcher.start(sum(map(len, mine)), sum(index in done for unit in mine for index in unit))
        if todo := [unit for unit in mine if not done.issuperset(unit)]:
            with closing(_ahead(dataset, todo)) as units_read:
                lines = (line for questions in units_read for line in _lines(job, questions, asked))
                _keep((line for line in lines if line["index"] not in done), path, watcher)


def count(job: Job, dataset: Dataset) -> int:
    """How many rows are asked for, of all shards together."""
    return len(dataset) if job.limit is None else min(job.limit, len(dataset))


def units(dataset: Dataset, total: int) -> list[list[int]]:
    """The first `total` rows, those about one medium together, `AT_ONCE` at most, in the order of the data."""
    name_of: Callable[[int], str] = getattr(dataset, "medium_of", lambda _: "")
    media: dict[object, list[int]] = {}
    for index in range(total):
        media.setdefault(name_of(index) or index, []).append(index)
    return [one[start : start + AT_ONCE] for one in media.values() for start in range(0, len(one), AT_ONCE)]


def shard_of(found: Sequence[list[int]], shard: tuple[int, int]) -> list[list[int]]:
    """The units of shard (i, n): i, i + n, i + 2n ..."""
    return list(found[shard[0] :: shard[1]])


def check_run(job: Job, lineage: Mapping[str, Any], length: int) -> None:
    """Write down what a folder's rows come from, or compare it with what is written there.

    Raises: ConfigError, if the folder's rows come from another model, benchmark, protocol or data.
    """
    benchmark = job.benchmark
    record = {
        "format": FORMAT,
        "benchmark": benchmark.name,
        "protocol": job.protocol,
        "dataset": benchmark.dataset,
        "split": benchmark.split,
        "options": dict(benchmark.options),
        "settings": asdict(job.options),
        "rows": length,
        "model": dict(lineage),
    }
    record = json.loads(json.dumps(record, default=str))
    if (job.out / RUN).exists():
        old = read_run(job.out)
        changed = [name for name in record if record[name] != old.get(name)]
        if changed == ["model"]:
            changed = [
                f"model {name}"
                for name in {**record["model"], **old["model"]}
                if record["model"].get(name) != old["model"].get(name) and name not in ("device", "python", "model")
            ]
        if changed:
            raise ConfigError(
                f"{job.out} holds rows of another run: {', '.join(changed)} differ. Give another -o, or --overwrite"
            )
        return
    _write_run(job.out, {**record, "data": str(job.data.absolute())})


def _write_run(out: Path, record: Mapping[str, Any]) -> None:
    with atomic_path(out / RUN) as path:
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_run(out: Path) -> dict[str, Any]:
    """What a folder's rows come from.

    Raises: ConfigError, if the folder has no run in it; DataError, if it cannot be read.
    """
    path = out / RUN
    if not path.is_file():
        raise ConfigError(f"{out} holds no evaluation ({RUN} is not there); give a folder that `segue evaluate` wrote")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}; start anew with --overwrite") from error
    if record.get("format") != FORMAT:
        raise DataError(f"{path} has format {record.get('format')}; this version reads {FORMAT}")
    return record


def rescore(job: Job, dataset: Dataset, *, judge: Path | None = None) -> None:
    """Score every stored answer anew; no model is needed. `judge` is a file of ratings, for benchmarks that need one.

    Raises: DataError, if the data have other rows than those that were asked, or the ratings cannot be read;
        ConfigError, if the benchmark takes no ratings.
    """
    record = read_run(job.out)
    if judge is not None and job.benchmark.judge is None:
        raise ConfigError(f"{job.benchmark.name} is scored without a judge; leave --judge away")
    with ExitStack() as held:
        files = rows.files(job.out)
        for path in files:
            held.enter_context(alone(path))
        scored_anew = {
            path: [_rescored(job, dataset, line) if line["status"] == "ok" else line for line in rows.lines(path)]
            for path in files
        }
        if judge is not None and job.benchmark.judge is not None:
            answered = [line for lines in scored_anew.values() for line in lines if line["status"] == "ok"]
            rated = {row["id"]: row for row in job.benchmark.judge([line["row"] for line in answered], judge)}
            for line in answered:
                line["row"] = rated[line["id"]]
        for path, lines in scored_anew.items():
            rows.write(path, lines)
        ratings = None if judge is None else hashlib.sha256(judge.read_bytes()).hexdigest()[:16]
        _write_run(job.out, {**record, "judged": ratings})


def _rescored(job: Job, dataset: Dataset, line: rows.Line) -> rows.Line:
    if line["index"] >= len(dataset):
        raise DataError(f"row {line['index']} was answered, but {dataset.name} has {len(dataset)} rows; give its data")
    sample = dataset.get(line["index"], rng_for(0, 0, line["index"]))
    if sample.id != line["id"]:
        raise DataError(
            f"row {line['index']} is {sample.id}, but {line['id']} was answered; the data are not those that were asked"
        )
    return {**line, "row": scored(job.benchmark, sample, answer_store.from_json(line["answer"]))}


def scored(benchmark: Benchmark, sample: Sample, answer: Answer) -> dict[str, Any]:
    """The row of an answer, with the sample's id and group; a sample without a group is one of its own."""
    row = benchmark.score(sample, answer)
    return {**row, "id": sample.id, "group": sample.group or sample.id}


def _brief(line: rows.Line) -> rows.Line:
    return {name: line[name] for name in ("index", "id", "status")}


def _keep(lines: Iterable[rows.Line], path: Path, watcher: Watcher) -> None:
    """Write lines down as they come."""
    failures = answers = 0
    for line in lines:
        rows.add(path, line)
        failure = line.get("error")
        failures, answers = failures + (failure is not None), answers + (failure is None)
        watcher.step(failure)
        if failures >= HOPELESS and not answers:
            raise SegueError(f"the first {failures} questions all failed, the last because: {failure}")


def _ahead(dataset: Dataset, todo: Sequence[list[int]]) -> Generator[list[_Question], None, None]:
    """The questions of each unit, read and decoded while the unit before is asked."""
    known: list[tuple[Media, Media]] = []
    with ThreadPoolExecutor(1, "decode") as pool:
        coming = None
        for unit in todo:
            following = pool.submit(_read, dataset, unit, known)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()


def _read(dataset: Dataset, unit: Sequence[int], known: list[tuple[Media, Media]]) -> list[_Question]:
    """The samples of a unit, about one medium where they are about one file, with its pixels decoded.

    `known` has the medium of the row before, as it was opened and as it was decoded.
    """
    questions = []
    for index in unit:
        try:
            sample = dataset.get(index, rng_for(0, 0, index))
            questions.append(_Question(index, replace(sample, messages=_decoded(sample.messages, known))))
        except SegueError as error:
            questions.append(_Question(index, None, error))
    return questions


def _decoded(messages: tuple[Message, ...], known: list[tuple[Media, Media]]) -> tuple[Message, ...]:
    """Messages with pixels in the place of files that are not too long."""

    def of(media: Media) -> Media:
        if known and _is_same(known[0][0], media):
            return known[0][1]
        decoded = media
        if not isinstance(media.source, np.ndarray) and 3 * prod(media.size) * media.count <= _DECODED:
            is_video = media.kind == "video"
            pixels = read_frames(media, range(media.count)).pixels if is_video else read_image(media)
            decoded = replace(media, source=pixels)
        known[:] = [(media, decoded)]
        return decoded

    return tuple(
        replace(message, parts=tuple(of(part) if isinstance(part, Media) else part for part in message.parts))
        for message in messages
    )


def _is_same(one: Media, other: Media) -> bool:
    return one is other or (isinstance(one.source, Path) and isinstance(other.source, Path) and one == other)


def _lines(job: Job, questions: Sequence[_Question], asked: Asked) -> Iterator[rows.Line]:
    """A line for each question of a unit. Where they cannot be asked together, each is asked on its own."""
    options = job.options
    asking = [question for question in questions if question.sample is not None]
    for question in questions:
        if question.failure is not None:
            yield _failed(question, question.failure)
    if len(asking) > 1:
        began = perf_counter()
        try:
            answers = asked.answer_each([_dialogue(question) for question in asking], options)
        except (SegueError, torch.OutOfMemoryError):
            log.info("%d questions about one medium cannot be asked together; asking them one by one", len(asking))
        else:
            seconds = (perf_counter() - began) / len(asking)
            for question, answer in zip(asking, answers, strict=True):
                yield _answered(job, question, answer, seconds)
            return
    for question in asking:
        yield _alone(job, question, asked, options)


def _alone(job: Job, question: _Question, asked: Asked, options: Options) -> rows.Line:
    began = perf_counter()
    try:
        answer = asked.answer_each([_dialogue(question)], options)[0]
    except (SegueError, torch.OutOfMemoryError) as error:
        return _failed(question, error)
    return _answered(job, question, answer, perf_counter() - began)


def _dialogue(question: _Question) -> tuple[Message, ...]:
    """All but the last message, which is the reference."""
    assert question.sample is not None
    return question.sample.messages[:-1]


def _answered(job: Job, question: _Question, answer: Answer, seconds: float) -> rows.Line:
    sample = question.sample
    assert sample is not None
    request = answer.lineage.get("request", {})
    return {
        "index": question.index,
        "id": sample.id,
        "status": "ok",
        "row": scored(job.benchmark, sample, answer),
        "answer": answer_store.to_json(answer, job.benchmark.thresholds),
        "asked": {name: request.get(name) for name in ("policy", "frames", "frames_shown", "prompts")},
        "seconds": round(seconds, 4),
    }


def _failed(question: _Question, error: Exception) -> rows.Line:
    name = f"row {question.index}" if question.sample is None else question.sample.id
    reason = str(error) if isinstance(error, SegueError) else "out of memory on the device"
    return {"index": question.index, "id": name, "status": "failed", "error": reason, "kind": type(error).__name__}
