"""Features of a benchmark's media, computed before anything is asked, and held against fresh ones."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from segue.data.base import Dataset, rng_for
from segue.encoder import FeatureStore, Key, MediaEncoder, MemoryStore, num_frames
from segue.engine import Engine
from segue.errors import SegueError
from segue.evals.metrics.confidence import wilson
from segue.evals.run.evaluation import Evaluation, shard_of, units
from segue.features import FeatureCache, formats
from segue.features.sizes import entry_bytes
from segue.media import read_ahead, remembering
from segue.prepare import MediaInput, preprocess_media
from segue.progress import UNWATCHED, Progress
from segue.types import Media, Message


class Shown(TypedDict):
    """How media are shown: the plan of a video's frames, and the most tiles of an image."""

    frames: str
    max_tiles: int


@dataclass(frozen=True, slots=True)
class CachedBenchmark:
    """A benchmark, the model that is to be asked, and its cache, which the model must have been given."""

    evaluation: Evaluation
    dataset: Dataset
    model: Engine
    cache: FeatureCache

    @property
    def name(self) -> str:
        """What its results are called."""
        return self.evaluation.benchmark.name_of(self.evaluation.data)

    @property
    def encoder(self) -> MediaEncoder:
        """The model's."""
        return self.model.encoder

    @property
    def shown(self) -> Shown:
        """How the benchmark and the model have it."""
        plan = self.model.plan(self.evaluation.options)
        return {"frames": plan.frames, "max_tiles": plan.options.max_tiles}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A medium that a benchmark shows, its key, and the first row about it."""

    media: Media
    key: Key
    row: int


@dataclass(slots=True)
class Listed:
    """The distinct media of a benchmark: those that are kept, those to be encoded, and why others cannot be."""

    there: list[Wanted] = field(default_factory=list)
    absent: list[Wanted] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def list_media(this: CachedBenchmark, progress: Progress = UNWATCHED) -> Listed:
    """The media of an evaluation's shard. Files that were looked at before are not opened, and no entry is."""
    found, seen, shown = Listed(), set[Key](), this.shown
    mine = shard_of(units(this.dataset, this.evaluation.count(this.dataset)), this.evaluation.shard)
    progress.start(len(mine))
    with remembering(this.cache.sources.facts):
        for unit in mine:
            failure = None
            try:
                # rows of a unit are about one medium
                for media in _media(this.dataset, unit[0]):
                    key = this.encoder.key(media, **shown)
                    if key not in seen:
                        seen.add(key)
                        (found.there if this.cache.has(*key) else found.absent).append(Wanted(media, key, unit[0]))
            except SegueError as error:
                found.failures.append(failure := str(error))
            progress.step(failure)
    return found


def _media(dataset: Dataset, row: int) -> Iterator[Media]:
    messages = dataset.get(row, rng_for(0, 0, row)).messages
    return (part for message in messages for part in message.parts if isinstance(part, Media))


def projected_bytes(this: CachedBenchmark, wanted: Sequence[Wanted]) -> list[int]:
    """What the entries of some media will weigh; of `lossless-split` the most it can be. Nothing is decoded: a black
    picture of each size is preprocessed, one of each kind encoded, and the rest follows from numbers of tiles.
    """
    cache, frames = this.cache, this.shown["frames"]
    known: dict[object, int] = {}
    rates: dict[str, tuple[float, int]] = {}
    weights = []
    for media in (one.media for one in wanted):
        count = num_frames(media, frames)
        case = (media.kind, media.size, count)
        if case not in known:
            vision = this.encoder.black(media, max_tiles=this.shown["max_tiles"]).vision
            assert vision.pixels is not None
            if media.kind not in rates:
                kept = this.encoder.computed(vision, cache.point)
                rates[media.kind] = (math.prod(kept.shape[:-1]) / len(vision.pixels), kept.shape[-1])
            rate, channels = rates[media.kind]
            beside = 0 if vision.grids is None else vision.grids.nbytes
            shape = (round(rate * len(vision.pixels) * count), channels)
            known[case] = entry_bytes(shape, this.model.model.dtype, cache.form.name, beside=beside)
        weights.append(known[case])
    return weights


def _decoded(this: CachedBenchmark, one: Wanted) -> MediaInput:
    return preprocess_media(one.media, this.encoder.processor, key=one.key, **this.shown)


@torch.no_grad()
def build(this: CachedBenchmark, wanted: Sequence[Wanted], progress: Progress) -> list[str]:
    """Encode media and keep their features, the next two decoded meanwhile; returns why some could not be.

    It ends early where the cache takes no more, which `cache.store.is_full` says.
    """
    failures: list[str] = []

    def decoded() -> Iterator[MediaInput | SegueError]:
        for one in wanted:
            try:
                yield _decoded(this, one)
            except SegueError as error:
                yield error

    with closing(read_ahead(decoded())) as coming:
        for shown in coming:
            if isinstance(shown, SegueError):
                failures.append(str(shown))
            else:
                this.encoder.encode([shown])
            if this.cache.store.is_full:
                break
            progress.step(failures[-1] if isinstance(shown, SegueError) else None)
    this.cache.write_usage()
    return failures


@dataclass(frozen=True, slots=True)
class Compared:
    """What is kept beside what is computed anew: the largest relative L2 error and the least mean cosine of tokens
    without their channels' means, over so many media; `wrong` are those beyond what their format may cost.
    """

    media: int
    error: float
    cosine: float
    wrong: tuple[str, ...]


MOST = {"lossless": 1e-3, "lossless-split": 1e-3, "bf16": 5e-3, "int8": 0.015}
"""The relative error that a format may cost, on another device too; of `int8-per-tensor` nobody can say."""


def compare_features(this: CachedBenchmark, wanted: Sequence[Wanted], progress: Progress) -> Compared:
    """Encode media anew and compare what is kept of them with that."""
    form = this.cache.form.name
    errors, cosines, wrong = [0.0], [1.0], list[str]()
    progress.start(len(wanted))
    for one in wanted:
        fresh = this.encoder.computed(_decoded(this, one).vision, this.cache.point).cpu()
        kept = this.cache.get(*one.key)
        failure = None
        if kept is None or kept.values.shape != fresh.shape:
            failure = f"{one.media.name}: its entry is damaged or has another shape"
        else:
            errors.append(formats.measure(fresh, kept.values.cpu()).error)
            cosines.append(_cosine(fresh, kept.values.cpu()))
            if errors[-1] > MOST.get(form, math.inf):
                failure = f"{one.media.name}: the error is {errors[-1]:.2e}; {form} may cost {MOST[form]:g}"
        if failure is not None:
            wrong.append(failure)
        progress.step(failure)
    return Compared(len(wanted), max(errors), min(cosines), tuple(wrong))


def chosen(wanted: Sequence[Wanted], count: int, seed: int) -> list[Wanted]:
    """So many of them, by chance that follows from the seed and from each one's content."""
    return sorted(wanted, key=lambda one: hashlib.sha256(f"{seed} {one.key}".encode()).digest())[:count]


def _cosine(one: Float[Tensor, "*t c"], other: Float[Tensor, "*t c"]) -> float:
    first, second = (values.flatten(0, -2).float() for values in (one, other))
    mean = first.mean(0)
    return float(torch.nn.functional.cosine_similarity(first - mean, second - mean, dim=-1).mean())


@dataclass(frozen=True, slots=True)
class SameAnswers:
    """How many of some questions are answered with the same words with the cache and without; of how many the logits
    of the first token are the same to the last bit, and of how many its most likely token; and the largest divergence
    (Kullback and Leibler's, in nats) of its probabilities.
    """

    asked: int
    equal: int = 0
    same_logits: int = 0
    same_token: int = 0
    divergence: float = 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Between which shares of all questions the truth lies, with 95 % confidence (Wilson)."""
        return wilson(self.equal, self.asked)


def compare_answers(this: CachedBenchmark, wanted: Sequence[Wanted], tokens: int, progress: Progress) -> SameAnswers:
    """Ask the first question about each of some media that are kept, greedily, with the cache and without; so many
    tokens of the answers count.
    """
    found = SameAnswers(len(wanted))
    progress.start(len(wanted))
    for row in (one.row for one in wanted):
        messages = this.dataset.get(row, rng_for(0, 0, row)).messages[:-1]
        (cached, kept), (plain, fresh) = (
            _answer(this, features, messages, tokens) for features in (this.cache, MemoryStore())
        )
        log_kept, log_fresh = kept.log_softmax(-1), fresh.log_softmax(-1)
        divergence = functional.kl_div(log_kept, log_fresh, reduction="none", log_target=True)
        found = replace(
            found,
            equal=found.equal + (cached == plain),
            same_logits=found.same_logits + torch.equal(kept, fresh),
            same_token=found.same_token + bool(kept.argmax() == fresh.argmax()),
            # what is never said adds nothing: 0 x (-inf - -inf)
            divergence=max(found.divergence, float(divergence.nan_to_num().sum())),
        )
        failure = f"row {row}: {cached[:40]!r} with the cache, {plain[:40]!r} without"
        progress.step(None if cached == plain else failure)
    return found


def _answer(
    this: CachedBenchmark, features: FeatureStore, messages: Sequence[Message], tokens: int
) -> tuple[str, Float[Tensor, " v"]]:
    """What is answered, and the logits of the first token."""
    options = replace(this.evaluation.options, temperature=0.0, max_new_tokens=tokens)
    before, this.encoder.features = this.encoder.features, features
    try:
        return this.model.answer(messages, options).raw_text, this.model.logits(messages, options)
    finally:
        this.encoder.features = before
