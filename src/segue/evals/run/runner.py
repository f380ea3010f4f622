"""Asks a model every question of a benchmark, keeps each answer as it comes, and goes on where it was stopped.

Questions about several media are asked in one batch, those about one medium next to each other, so that it is decoded
and encoded once; the next batch is read and decoded meanwhile. Media are dealt out to shards in turn: medium i belongs
to shard i mod n.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from segue.data.base import Dataset, rng_for
from segue.data.questions import LETTERS
from segue.errors import ConfigError, DataError, SegueError
from segue.evals.base import Benchmark, EvaluatedModel, RankingModel, medium_of
from segue.evals.run import answer_store, rows
from segue.evals.run.evaluation import BATCH, Evaluation, check_run, read_run, shard_of, units, write_run
from segue.features import FeatureCache, Usage
from segue.files import alone, mend
from segue.media import read_ahead, read_frames, read_image, remembering
from segue.progress import Progress
from segue.types import Answer, Media, Message, Sample

log = logging.getLogger(__name__)

HOPELESS = 20
"""A run whose first so many questions all fail is given up."""
_DECODED = 1 << 29
"""Bytes of decoded pixels that are held for a batch; the frames of a longer clip are decoded as they are used."""


@dataclass(frozen=True, slots=True)
class _PendingRow:
    """A row that is to be asked; without a sample it cannot be, for the reason `failure`."""

    index: int
    sample: Sample | None
    failure: SegueError | None = None

    @property
    def medium(self) -> Media | None:
        """What it is about."""
        return None if self.sample is None else medium_of(self.sample)


def run(
    evaluation: Evaluation,
    dataset: Dataset,
    load: Callable[[], EvaluatedModel],
    progress: Progress,
    *,
    batch: int = BATCH,
) -> Usage:
    """Ask what is not yet answered of this evaluation's shard; returns what the model's feature cache was used for.

    A question that fails is written down as failed and asked again by the next run; it has no score.

    Raises: ConfigError, if the folder holds results of something else, or another process writes this shard;
        DataError, if rows there are damaged; SegueError, if the first `HOPELESS` questions all fail.
    """
    model, out, shard = load(), evaluation.out, evaluation.shard
    out.mkdir(parents=True, exist_ok=True)
    check_run(evaluation, model.lineage, len(dataset))
    path = out / rows.file_name(shard)
    path.touch()
    with alone(path), ExitStack() as others:
        for other in rows.files(out):
            if rows.shards_of(other) != shard[1]:
                others.enter_context(alone(other, shared=True))
        mend(path)
        done = {index for index, line in rows.gathered(out, _brief).items() if line["status"] == "ok"}
        mine = shard_of(units(dataset, evaluation.count(dataset)), shard)
        progress.start(sum(map(len, mine)), sum(index in done for unit in mine for index in unit))
        if todo := [unit for unit in mine if not done.issuperset(unit)]:
            asking, cache = _Asking(evaluation, model, batch), getattr(model, "features", None)
            cache = cache if isinstance(cache, FeatureCache) else None
            if cache is not None:
                others.enter_context(remembering(cache.sources.facts))
            # features that are kept need no pixels, and a video that is talked about only those of the frames shown:
            # there the engine decodes what it needs
            ahead = ("image", "video") if evaluation.benchmark.task == "segment" else ("image",)
            batches_read = _batches(dataset, todo, batch, decodes=ahead if cache is None else ())
            with closing(read_ahead(batches_read, 1)) as batches:
                lines = (line for questions in batches for line in asking.lines(questions))
                _keep((line for line in lines if line["index"] not in done), path, progress)
            if cache is not None:
                cache.write_usage()
                return cache.usage
    return Usage()


def rescore(evaluation: Evaluation, dataset: Dataset, *, ratings: Path | None = None) -> None:
    """Score every stored answer anew; no model is needed. `ratings` is a judge's file, for benchmarks that need one;
    answers that it does not rate keep the ratings of earlier files.

    Raises: DataError, if the data have other rows than those that were asked, or the ratings cannot be read;
        ConfigError, if the benchmark takes no ratings.
    """
    benchmark, out = evaluation.benchmark, evaluation.out
    record = read_run(out)
    if ratings is not None and benchmark.judge is None:
        raise ConfigError(f"{benchmark.name} is scored without a judge; leave --judge away")
    with ExitStack() as held:
        files = rows.files(out)
        for path in files:
            held.enter_context(alone(path))
        scored_anew = {
            path: [_rescored(benchmark, dataset, line) if line["status"] == "ok" else line for line in rows.lines(path)]
            for path in files
        }
        if ratings is not None and benchmark.judge is not None:
            answered = [line for lines in scored_anew.values() for line in lines if line["status"] == "ok"]
            rated = {row["id"]: row for row in benchmark.judge([line["row"] for line in answered], ratings)}
            for line in answered:
                line["row"] = rated[line["id"]]
        for path, lines in scored_anew.items():
            rows.write(path, lines)
        judged = record.get("judged")
        if ratings is not None:
            digest = hashlib.sha256(ratings.read_bytes()).hexdigest()[:16]
            judged = ", ".join(dict.fromkeys([*(judged.split(", ") if judged else []), digest]))
        write_run(out, {**record, "data": str(evaluation.data.absolute()), "judged": judged})


def scored(benchmark: Benchmark, sample: Sample, answer: Answer) -> dict[str, Any]:
    """The row of an answer, with the sample's id and group; a sample without a group is one of its own."""
    row = benchmark.score(sample, answer)
    return {**row, "id": sample.id, "group": sample.group or sample.id}


def _rescored(benchmark: Benchmark, dataset: Dataset, line: rows.Line) -> rows.Line:
    if line["index"] >= len(dataset):
        raise DataError(f"row {line['index']} was answered, but {dataset.name} has {len(dataset)} rows; give its data")
    sample = dataset.get(line["index"], rng_for(0, 0, line["index"]))
    if sample.id != line["id"]:
        raise DataError(
            f"row {line['index']} is {sample.id}, but {line['id']} was answered; the data are not those that were asked"
        )
    row = scored(benchmark, sample, answer_store.from_json(line["answer"]))
    if "rating" in row and row["rating"] is None:
        row["rating"] = line["row"].get("rating")
    return {**line, "row": row}


def _brief(line: rows.Line) -> rows.Line:
    return {name: line[name] for name in ("index", "id", "status")}


def _keep(lines: Iterable[rows.Line], path: Path, progress: Progress) -> None:
    """Write lines down as they come."""
    failures = answers = 0
    for line in lines:
        rows.add(path, line)
        failure = line.get("error")
        failures, answers = failures + (failure is not None), answers + (failure is None)
        progress.step(failure)
        if failures >= HOPELESS and not answers:
            raise SegueError(f"the first {failures} questions all failed, the last because: {failure}")


def _batches(
    dataset: Dataset, todo: Sequence[list[int]], most: int, *, decodes: Sequence[str]
) -> Iterator[list[_PendingRow]]:
    """Questions of several units, read and decoded: `most` of them and `_DECODED` bytes of pixels, or one unit's.

    A unit stays whole, so that its clip is followed once, unless each question is asked on its own. Files of other
    kinds than `decodes` stay files.
    """
    waiting: list[_PendingRow] = []
    known: list[tuple[Media, Media]] = []
    for unit in todo:
        for part in [unit] if most > 1 else [[index] for index in unit]:
            questions = [_read(dataset, index, known, decodes) for index in part]
            if waiting and not _fit([*waiting, *questions], most):
                yield waiting
                waiting = []
            waiting += questions
    yield waiting


def _fit(questions: Sequence[_PendingRow], most: int) -> bool:
    """Whether questions can be a batch."""
    sources = {id(one.medium): one.medium.source for one in questions if one.medium is not None}.values()
    pixels = sum(source.nbytes for source in sources if isinstance(source, np.ndarray))
    return len(questions) <= most and pixels <= _DECODED


def _read(dataset: Dataset, index: int, known: list[tuple[Media, Media]], decodes: Sequence[str]) -> _PendingRow:
    """A row with the pixels of its medium; `known` has the medium of the row before, as opened and as decoded."""
    try:
        sample = dataset.get(index, rng_for(0, 0, index))
        return _PendingRow(index, replace(sample, messages=_decoded(sample.messages, known, decodes)))
    except SegueError as error:
        return _PendingRow(index, None, error)


def _decoded(
    messages: tuple[Message, ...], known: list[tuple[Media, Media]], decodes: Sequence[str]
) -> tuple[Message, ...]:
    """Messages with pixels in the place of files of the kinds `decodes` that are not too long; else with one medium for
    each file, which questions about it share.
    """

    def of(media: Media) -> Media:
        if known and _is_same(known[0][0], media):
            return known[0][1]
        decoded = media
        if (
            media.kind in decodes
            and not isinstance(media.source, np.ndarray)
            and 3 * prod(media.size) * media.count <= _DECODED
        ):
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


class _Asking:
    """Puts questions to a model, as many at once as can be asked together."""

    def __init__(self, evaluation: Evaluation, model: EvaluatedModel, most: int):
        self.benchmark = evaluation.benchmark
        self.options = evaluation.options
        self.model = model
        self.most = most

    def lines(self, questions: Sequence[_PendingRow]) -> Iterator[rows.Line]:
        """A line for each question."""
        for question in questions:
            if question.failure is not None:
                yield _failed(question, question.failure)
        if asked := [question for question in questions if question.sample is not None]:
            yield from self._together(asked)

    def _together(self, questions: Sequence[_PendingRow]) -> Iterator[rows.Line]:
        """A line for each; questions that cannot be asked together are asked in halves, down to each on its own."""
        samples = [question.sample for question in questions if question.sample is not None]
        count = min(self.most, len(questions))
        began = perf_counter()
        try:
            answers = self._answers(samples)
        except (SegueError, torch.OutOfMemoryError) as error:
            if isinstance(error, torch.OutOfMemoryError) and count > 1:
                self.most = count // 2
                log.warning("%d questions at once do not fit into memory; from here on %d are asked", count, self.most)
                yield from self._together(questions)
            elif len(questions) > 1:
                half = len(questions) // 2
                yield from self._together(questions[:half])
                yield from self._together(questions[half:])
            else:
                yield _failed(questions[0], error)
            return
        seconds = (perf_counter() - began) / len(questions)
        for question, answer in zip(questions, answers, strict=True):
            yield self._answered(question, answer, seconds)

    def _answers(self, samples: Sequence[Sample]) -> Sequence[Answer]:
        if self.benchmark.ranked:
            return [self._likeliest(sample) for sample in samples]
        # all but the last message, which is the reference
        dialogues = [sample.messages[:-1] for sample in samples]
        return self.model.answer_all(dialogues, self.options, rows=self.most)

    def _likeliest(self, sample: Sample) -> Answer:
        """The letter of the option that is likeliest; the first of several alike."""
        if not isinstance(self.model, RankingModel):
            raise ConfigError(f"{self.benchmark.name} ranks answers by likelihood, which this model cannot tell")
        assert sample.target is not None
        letters = LETTERS[: len(sample.target["options"])]
        found = self.model.score(sample.messages[:-1], [f" {letter}" for letter in letters], self.options)
        chosen = letters[int(np.argmax(found))]
        return Answer(chosen, raw_text=chosen, lineage=dict(self.model.lineage))

    def _answered(self, question: _PendingRow, answer: Answer, seconds: float) -> rows.Line:
        assert question.sample is not None
        request = answer.lineage.get("request", {})
        return {
            "index": question.index,
            "id": question.sample.id,
            "status": "ok",
            "row": scored(self.benchmark, question.sample, answer),
            "answer": answer_store.to_json(answer, self.benchmark.thresholds),
            "asked": {name: request.get(name) for name in ("policy", "frames", "frames_shown", "prompts")},
            "seconds": round(seconds, 4),
        }


def _failed(question: _PendingRow, error: Exception) -> rows.Line:
    name = f"row {question.index}" if question.sample is None else question.sample.id
    reason = str(error) if isinstance(error, SegueError) else "out of memory on the device"
    return {"index": question.index, "id": name, "status": "failed", "error": reason, "kind": type(error).__name__}
