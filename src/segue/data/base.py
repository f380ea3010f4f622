"""What every dataset is, and what all of them share: chance by number, and a check of every sample that leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from segue.errors import ConfigError, DataError, SegueError
from segue.types import Media, Region, Sample

SEGMENT = "[SEG]"


@runtime_checkable
class Dataset(Protocol):
    """Rows of annotation, each of which gives a sample.

    A dataset has one length: the number of its rows. How often a row is drawn is for the mixture to say.
    """

    name: str

    def __len__(self) -> int:
        """The number of rows."""
        ...

    def get(self, index: int, rng: np.random.Generator) -> Sample:
        """The sample of a row, counted from 0. What is left to chance (wording, referents, frames) `rng` decides.

        The same row and the same state of `rng` give the same sample, in any process.

        Raises: DataError, MediaError or LimitError, naming the row, if it cannot be used.
        """
        ...


@dataclass(frozen=True, slots=True)
class Rows:
    """A dataset whose rows lie in memory and are made into samples by a function, which must be picklable.

    `rows` hold annotations; media and masks are opened and decoded when a row is asked for. `medium` names the medium
    of a row by its annotation alone, so that an evaluation can ask all questions about a video in one go.
    """

    name: str
    rows: Sequence[Any]
    make: Callable[[Any, np.random.Generator], Sample]
    medium: Callable[[Any], str] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def medium_of(self, index: int) -> str:
        """A name that rows about the same medium share and others do not; empty, where that cannot be told."""
        return "" if self.medium is None else self.medium(self.rows[index])

    def get(self, index: int, rng: np.random.Generator) -> Sample:
        """The sample of a row; see `Dataset`."""
        if not 0 <= index < len(self.rows):
            raise IndexError(f"{self.name} has rows 0 to {len(self.rows) - 1}, not {index}")
        with error_context(f"{self.name} row {index}"):
            return checked(self.make(self.rows[index], rng))


def rng_for(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator that decides what is left to chance in the draw `index` of an epoch.

    It depends on the three numbers alone, so every worker and every machine makes the same sample of a draw.

    Raises: ConfigError, for numbers outside 0 to 2^32 - 1.
    """
    return _generator(1, seed, epoch, index)


def order_rng(seed: int, epoch: int) -> np.random.Generator:
    """The generator that decides the order of an epoch, independent of all that `rng_for` gives.

    Raises: ConfigError, for numbers outside 0 to 2^32 - 1.
    """
    return _generator(2, seed, epoch, 0)


def _generator(purpose: int, seed: int, epoch: int, index: int) -> np.random.Generator:
    # One word each: numpy spreads larger numbers over several, and then different numbers could meet.
    if not all(0 <= number < 2**32 for number in (seed, epoch, index)):
        raise ConfigError(f"seed {seed}, epoch {epoch} and index {index} must each lie between 0 and 2^32 - 1")
    return np.random.default_rng([purpose, seed, epoch, index])


def spread_draw(rng: np.random.Generator, available: int, wanted: int) -> list[int]:
    """`wanted` of the numbers below `available` (both 1 or more), by chance: each once before any comes again."""
    rounds = [rng.permutation(available) for _ in range(-(-wanted // available))]
    return [int(number) for number in np.concatenate(rounds)[:wanted]]


def ordered_draw(rng: np.random.Generator, available: int, wanted: int | None) -> list[int]:
    """`wanted` different numbers below `available`, ascending; all of them if there are fewer or `wanted` is None."""
    if wanted is None or wanted >= available:
        return list(range(available))
    return sorted(int(number) for number in rng.choice(available, wanted, replace=False))


@contextmanager
def error_context(place: str) -> Iterator[None]:
    """Says in which place of the data an error happened."""
    try:
        yield
    except SegueError as error:
        raise type(error)(f"{place}: {error}") from error


def checked(sample: Sample) -> Sample:
    """The sample itself, if its parts fit together.

    Raises: DataError, if the answers do not hold exactly one `[SEG]` per region, a question holds one, the dialogue
        does not end with an answer, or a region's masks are not of the medium's size and at the sample's frames.
    """
    answers = [message for message in sample.messages if message.role == "assistant"]
    marks = sum(message.text.count(SEGMENT) for message in answers)
    if marks != len(sample.regions):
        raise DataError(
            f"the answers hold {marks} {SEGMENT} for {len(sample.regions)} masks; each mask needs exactly one, "
            "for it is what asks for the mask"
        )
    if any(SEGMENT in message.text for message in sample.messages if message.role != "assistant"):
        raise DataError(f"a question holds {SEGMENT}, which only answers may; take it out of the text")
    if not sample.messages or sample.messages[-1].role != "assistant":
        raise DataError("the dialogue does not end with an answer, so there is nothing to learn; add the answer")
    for number, region in enumerate(sample.regions, start=1):
        _check_masks(region, number, sample.target_media, sample.frames)
    return sample


def _check_masks(region: Region, number: int, media: Media | None, frames: tuple[int, ...]) -> None:
    if region.masks is None or media is None:
        raise DataError(
            f"region {number} has no {'medium' if region.masks else 'masks'}; an answer's region needs both"
        )
    if region.masks.size != media.size:
        raise DataError(f"region {number} has masks of {region.masks.size} (height, width) on {media.size} pixels")
    if tuple(region.masks.index.tolist()) != frames:
        raise DataError(f"region {number} has masks at frames {region.masks.index.tolist()}, shown are {list(frames)}")
