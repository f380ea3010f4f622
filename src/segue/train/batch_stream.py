"""Which samples a process learns from at which step, read ahead by workers.

Samples are drawn in the order of a `Mixture`, one after another over its epochs. A step takes the next `batch *
processes * accumulation` of them; within it each process has its own share. So what a step learns from is a function of
its number, and a run goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from segue.data.mixture import Mixture, MixturePart
from segue.datasets import DATASETS
from segue.errors import ConfigError, DataError, LimitError, MediaError, SegueError
from segue.features import Usage
from segue.media import remembering
from segue.processes import own_cores
from segue.train.examples import RowMaker, TrainBatch, collate
from segue.train.recipe import DatasetSpec, TrainRecipe

SKIPPED = "skipped.jsonl"


def parts_of(sources: Sequence[DatasetSpec]) -> list[MixturePart]:
    """The datasets of a recipe, opened; one that is named twice gets a number.

    Raises: ConfigError, for an option that a dataset does not know; what opening it raises.
    """
    parts: list[MixturePart] = []
    for source in sources:
        load = DATASETS[source.dataset]
        try:
            dataset = load(source.root, source.split, **source.options)
        except TypeError as error:
            options = ", ".join(source.options)
            raise ConfigError(
                f"dataset {source.dataset!r} at {source.root} cannot take the options {options or 'none'} ({error})"
            ) from error
        taken = [part.name for part in parts]
        name = f"{source.dataset}:{dataset.name}"
        number = sum(other == name or other.startswith(f"{name}#") for other in taken)
        parts.append(MixturePart(f"{name}#{number + 1}" if number else name, dataset, source.weight))
    return parts


def mixture_of(sources: Sequence[DatasetSpec], recipe: TrainRecipe, run: Path) -> Mixture:
    """What a stage learns from, in the order that the recipe's seed gives; bad rows are written into the run folder.

    Raises: SegueError, as `parts_of` and `Mixture` do.
    """
    skipped = run / SKIPPED if recipe.on_bad_sample == "skip" else None
    return Mixture(
        parts_of(sources),
        recipe.seed,
        on_bad_sample=recipe.on_bad_sample,
        ceiling=recipe.ceiling,
        skipped=skipped,
    )


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """Which part of each step is this process's: process `rank` of `processes`."""

    rank: int
    processes: int
    batch: int
    accumulation: int

    @property
    def per_step(self) -> int:
        """Samples that all processes together take in a step."""
        return self.processes * self.batch * self.accumulation

    def positions(self, step: int, micro: int) -> range:
        """Positions, counted over all epochs, of the batch `micro` of a step of this process."""
        start = step * self.per_step + (micro * self.processes + self.rank) * self.batch
        return range(start, start + self.batch)


@dataclass(frozen=True, slots=True)
class FetchedBatch:
    """What a worker made of some positions: a batch, None if every row was bad; or the error that ends the run."""

    batch: TrainBatch | None
    ids: tuple[str, ...]
    error: SegueError | None = None
    usage: Usage | None = None
    """Of the feature cache, in making it."""


class BatchStream(Dataset[FetchedBatch]):
    """The batches of one process, by number: `accumulation` to a step. Can be sent to workers."""

    def __init__(self, mixture: Mixture, make: RowMaker, shard: ShardSpec):
        self.mixture = mixture
        self.make = make
        self.shard = shard

    def __getitem__(self, number: int) -> FetchedBatch:
        """The batch of that number. Errors come back as values, for workers can only hand on their text."""
        step, micro = divmod(number, self.shard.accumulation)
        features, rows = self.make.features, []
        try:
            with nullcontext() if features is None else remembering(features.sources.facts):
                for place in self.shard.positions(step, micro):
                    epoch, position = divmod(place, len(self.mixture))
                    sample = self.mixture.get(epoch, position)
                    if sample is None:
                        continue
                    try:
                        rows.append(self.make(sample))
                    except (DataError, MediaError, LimitError) as error:
                        self.mixture.refuse(epoch, position, error)
        except SegueError as error:
            return FetchedBatch(None, (), error)
        batch = collate(rows, self.make.processor) if rows else None
        usage = None if features is None else features.take_usage()
        return FetchedBatch(batch, tuple(row.id for row in rows), usage=usage)

    def spare(self) -> TrainBatch:
        """The first batch that can be made: where all rows of a batch are bad, it goes through without counting.

        Every process must take part in every step, or the others wait for ever.

        Raises: DataError, if an epoch has none; what a bad row raises.
        """
        for number in range(len(self.mixture)):
            fetched = self[number]
            if fetched.error:
                raise fetched.error
            if fetched.batch is not None:
                return fetched.batch
        raise DataError("no sample of an epoch can be used; check the data with `segue doctor`")

    def batches(self, first: int, last: int, *, workers: int) -> Iterator[FetchedBatch]:
        """Batches of the steps from `first` up to `last`, in order, read ahead by so many worker processes, of which
        there are never more than cores.
        """
        workers = min(workers, own_cores())
        numbers = range(first * self.shard.accumulation, last * self.shard.accumulation)
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            multiprocessing_context=_context() if workers else None,
        )
        return iter(loader)


def _context() -> BaseContext:
    """How workers begin: from a server that has imported all of this once, where the system has such servers.

    A fork of this process would copy the locks of threads that it does not copy; to spawn each worker anew costs the
    imports anew, one worker after another.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def step_seed(seed: int, stage: int, step: int, rank: int, micro: int) -> int:
    """What decides all chance inside one batch's pass: points, dropped inputs. Different numbers, different chance."""
    return int(np.random.SeedSequence([seed, stage, step, rank, micro]).generate_state(1)[0])
