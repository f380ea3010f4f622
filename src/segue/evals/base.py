"""What a benchmark is: a record that names its data, how it is asked, and the two functions that make its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from segue.options import Options
from segue.types import Answer, Media, Message, Sample, Task

Row = dict[str, Any]
"""What is kept of one answer: values that JSON can hold, enough to reduce again without a model.

The runner adds `id` and `group` of the sample to each row, so that every reduction finds them there.
"""

Score = Callable[[Sample, Answer], Row]
"""Pure. An answer that cannot be read is a result: it scores the worst value and says `unparsed`."""

Reduce = Callable[[Sequence[Row]], dict[str, float]]
"""Pure, and the order of the rows does not matter.

Raises: DataError, for no rows.
"""

Submit = Callable[[Sequence[Row], Path], Path]
"""Writes the file that a server takes, at the given path without its ending; returns its path."""

Judge = Callable[[Sequence[Row], Path], list[Row]]
"""Puts the ratings of a judge's file into the rows; the same `reduce` then gives figures instead of counts."""


@runtime_checkable
class EvaluatedModel(Protocol):
    """What can be evaluated: a `segue.Engine`, or anything else that answers dialogues."""

    lineage: dict[str, Any]

    def answer_all(self, dialogues: Sequence[Sequence[Message]], options: Options, *, rows: int) -> Sequence[Answer]:
        """An answer to each of some dialogues about whatever media, up to `rows` of them computed together.

        Raises: SegueError, if one of them cannot be asked.
        """
        ...


@runtime_checkable
class RankingModel(Protocol):
    """What can rank given answers besides: a `segue.Engine` can."""

    def score(self, messages: Sequence[Message], answers: Sequence[str], options: Options) -> Sequence[float]:
        """How likely each of some answers is after a dialogue: the higher, the likelier.

        Raises: SegueError, if it cannot be asked.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One line of the table of benchmarks. Scores are compared only where `protocol` is the same."""

    name: str
    """What people type: `refcoco_val`."""
    dataset: str
    """Its name in `segue.datasets.DATASETS`."""
    split: str
    """Which part of it."""
    task: Task
    """The kind of question."""
    media: int | None = None
    """How many images and videos it asks about, where that is known before the data are opened."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the dataset: what it needs beside root and split to give each row once, asked as the protocol asks."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `segue.Options` that the protocol fixes."""
    score: Score
    """One answer to a row."""
    reduce: Reduce
    """Rows to figures."""
    headline: str
    """The figure that is quoted."""
    protocol: str
    """Names how the figures came about, with a number that rises when that changes: `res-ciou/1`."""
    files: tuple[str, ...] = ()
    """What must lie under the data root, as paths or patterns."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Headline figures that papers and model cards state, by model, in the unit of the headline."""
    ranked: bool = False
    """Nothing is generated: the answer is the letter of an option that is likeliest after a space, as in Qwen-VL's
    evaluation. `target["options"]` says how many there are."""
    thresholds: tuple[float, ...] = ()
    """At which masks are stored too, so that a scan needs no model; `settings` must then keep logits."""
    is_private: bool = False
    """Names of rows are names of somebody's own files, which reports do not tell unless asked to."""
    submit: Submit | None = None
    """For splits whose truth only a server knows: `reduce` then gives counts alone."""
    judge: Judge | None = None
    """For answers that another model or a person has to rate: `submit` then writes what a judge is given."""

    def name_of(self, data: Path) -> str:
        """What results on these data are called: the name, or that of a folder of one's own with its split."""
        return f"{data.resolve().name}_{self.split}" if self.is_private else self.name


def medium_of(sample: Sample) -> Media | None:
    """The first image or video of a sample's dialogue."""
    parts = (part for message in sample.messages for part in message.parts)
    return next((part for part in parts if isinstance(part, Media)), None)
