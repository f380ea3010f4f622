"""One's own masks: what a model finds in a folder's images, scored at any threshold from one pass.

Only this file reads the truth, and masks come from the engine alone. A threshold is chosen on one split and used on
another: `ask` the validation split, `scan` it, and score the test split once at the best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from segue.data.base import Dataset, rng_for
from segue.engine import Answer, Engine, Options
from segue.errors import DataError
from segue.evals.masks import Overlap, overlap
from segue.types import Finished, Media, Region, Sample

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FIGURES = ("dice", "iou", "precision", "recall")


@dataclass(frozen=True, slots=True)
class Asked:
    """A row of the data, and the answer to each phrase that is marked there, with logits kept."""

    number: int
    sample: Sample
    answers: Mapping[str, Answer]

    @property
    def media(self) -> Media:
        """The image or video asked about."""
        return _media(self.sample)

    def found(self, phrase: str, threshold: float) -> Bool[np.ndarray, "t h w"]:
        """All that was found for a phrase on the annotated frames, where its probability is above the threshold."""
        found = np.zeros((len(self.sample.frames), *self.media.size), bool)
        for region in self.answers[phrase].at_threshold(threshold).regions:
            found |= _dense(region, self.sample.frames)
        return found

    def truth(self, phrase: str) -> Bool[np.ndarray, "t h w"]:
        """All that is marked for a phrase on the annotated frames."""
        marked = [_dense(region, self.sample.frames) for region in self.sample.regions if region.phrase == phrase]
        truth: np.ndarray = np.any(marked, axis=0)
        return truth


@dataclass(frozen=True, slots=True)
class Score:
    """How well the masks of one object agree, over all annotated frames.

    `is_emitted` is False where the model said no `[SEG]`: it did not look, which is another fault than a wrong mask.
    """

    number: int
    group: str
    phrase: str
    overlap: Overlap
    is_emitted: bool


def ask(engine: Engine, dataset: Dataset, *, asked: Callable[[], None] = lambda: None) -> list[Asked]:
    """Ask a model for everything that is marked in a dataset's rows, each phrase in a question of its own.

    What a row says is not there is not asked for, and rows that mark nothing are left out. Memory holds low-resolution
    logits of all masks; `asked` is told of each row.

    Raises: SegueError, for a row that cannot be read or asked about: a failure is no score.
    """
    answers = []
    for number in range(len(dataset)):
        sample = dataset.get(number, rng_for(0, 0, number))
        phrases = dict.fromkeys(region.phrase for region in sample.regions)
        if phrases:
            answers.append(Asked(number, sample, {phrase: _answer(engine, sample, phrase) for phrase in phrases}))
        asked()
    if not answers:
        raise DataError(f"none of the {len(dataset)} rows of {dataset.name} marks anything, so no mask can be scored")
    return answers


def scores(answers: Iterable[Asked], *, threshold: float = 0.5) -> list[Score]:
    """Each object's score with a pixel in a mask where its probability is above `threshold`; no model is needed.

    Raises: ConfigError, for a threshold outside (0, 1).
    """
    return [
        Score(
            one.number,
            one.sample.group,
            phrase,
            overlap(one.found(phrase, threshold), one.truth(phrase)),
            bool(answer.regions),
        )
        for one in answers
        for phrase, answer in one.answers.items()
    ]


def means(scored: Sequence[Score]) -> dict[str, float]:
    """`dice`, `iou`, `precision` and `recall`, each the mean over the objects that have one; and `emitted`, the share
    of objects for which the model said `[SEG]`. A mean over nothing is NaN.
    """
    figures = {name: [getattr(score.overlap, name) for score in scored] for name in FIGURES}
    figures["emitted"] = [float(score.is_emitted) for score in scored]
    return {name: _mean([value for value in values if value is not None]) for name, values in figures.items()}


def pooled(scored: Sequence[Score]) -> Overlap:
    """The pixels of all objects together, where a large object counts more than a small one."""
    return sum((score.overlap for score in scored), Overlap())


def scan(answers: Sequence[Asked], *, thresholds: Sequence[float] = THRESHOLDS) -> Mapping[float, Mapping[str, float]]:
    """The means at every threshold, all from the same answers.

    Raises: ConfigError, for a threshold outside (0, 1).
    """
    return {threshold: means(scores(answers, threshold=threshold)) for threshold in thresholds}


def best_threshold(scanned: Mapping[float, Mapping[str, float]], *, by: str = "dice") -> float:
    """The threshold of a scan with the highest mean; of equal ones that nearest to 0.5."""
    return max(scanned, key=lambda threshold: (scanned[threshold][by], -abs(threshold - 0.5)))


def _media(sample: Sample) -> Media:
    return next(part for message in sample.messages for part in message.parts if isinstance(part, Media))


def _answer(engine: Engine, sample: Sample, phrase: str) -> Answer:
    events = engine.segment(_media(sample), [phrase], Options(keep_logits=True))
    answer = next(event.answer for event in events if isinstance(event, Finished))
    assert isinstance(answer, Answer)
    return answer


def _dense(region: Region, frames: Sequence[int]) -> Bool[np.ndarray, "t h w"]:
    """A region's masks on frames of these numbers."""
    assert region.masks is not None
    places = {int(number): place for place, number in enumerate(region.masks.index)}
    dense: np.ndarray = np.stack([region.masks.dense(places[frame]) for frame in frames])
    return dense


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
