"""Several processes on one run: each asks its own shard, and the parent tells how all of them get on."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import Any, Literal

import torch

from segue import loading, processes
from segue.data.base import Dataset
from segue.evals import benchmarks
from segue.evals.base import EvaluatedModel
from segue.evals.run.evaluation import Evaluation
from segue.evals.run.runner import BATCH, run
from segue.features import Store, Usage
from segue.progress import Progress

_TOLD: list[Queue[tuple[Any, ...]]] = []
"""Where a worker says how it gets on; set once when its process starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSpec:
    """What to evaluate on what, in words that travel between processes; fields as of `find`, `Evaluation`, `run`
    and `load`."""

    model: str
    on: str
    data: Path
    out: Path
    own: Mapping[str, str | None] = field(default_factory=dict)
    protocol: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    batch: int = BATCH
    device: str = "auto"
    dtype: str = "auto"
    quantize_kv: bool = False
    cache: str | None = None
    cache_format: str = "lossless"
    cache_point: Literal["tower", "projected"] = "tower"

    def evaluation(self, shard: tuple[int, int] = (0, 1)) -> Evaluation:
        """The part of it that is a shard's.

        Raises: ConfigError, if there is no such benchmark.
        """
        return Evaluation(
            benchmark=benchmarks.find(self.on, protocol=self.protocol, **self.own),
            data=self.data,
            out=self.out,
            settings=self.settings,
            limit=self.limit,
            shard=shard,
        )

    def load(self) -> EvaluatedModel:
        """The model, with its feature cache if there is to be one; what `segue.loading.load` raises."""
        engine = loading.load(self.model, device=self.device, dtype=self.dtype, quantize_kv=self.quantize_kv)
        if self.cache is not None:
            engine.use_cache(Store(self.cache), form=self.cache_format, point=self.cache_point)
        return engine


def run_workers(spec: EvaluationSpec, open_data: Callable[[], Dataset], workers: int, progress: Progress) -> Usage:
    """Run an evaluation in so many processes; where there are several GPUs, each has its own. Returns what `run` does.

    `open_data` gives its data, which can be pickled; it is called while the processes start.

    Raises: SegueError, as `run` does, and if a worker dies; what `open_data` raises.
    """
    told: Queue[tuple[Any, ...]] = multiprocessing.get_context("spawn").Queue()
    with processes.pool(workers, _begin, told) as pool:
        for _ in range(workers):
            pool.submit(int)  # a process starts, and imports what `_begin` stands beside, when there is something to do
        dataset = open_data()
        shards = [pool.submit(_work, spec, dataset, (number, workers)) for number in range(workers)]
        _pass_on(told, shards, progress)
        return sum((shard.result() for shard in shards), Usage())


def _pass_on(told: Queue[tuple[Any, ...]], shards: list[Future[Usage]], progress: Progress) -> None:
    """Tell what all workers say, until they are done."""
    begun: list[tuple[int, int]] = []
    is_over = False
    while not is_over:
        is_over = not wait(shards, timeout=0).not_done
        try:
            while True:
                what, *words = told.get(timeout=0 if is_over else 0.2)
                if what == "step":
                    progress.step(words[0])
                else:
                    begun.append((words[0], words[1]))
                    progress.start(sum(total for total, _ in begun), sum(done for _, done in begun))
        except Empty:
            continue


def _begin(told: Queue[tuple[Any, ...]]) -> None:
    _TOLD.append(told)


def _work(spec: EvaluationSpec, dataset: Dataset, shard: tuple[int, int]) -> Usage:
    evaluation = spec.evaluation(shard)
    device, gpus = spec.device, torch.cuda.device_count()
    if device == "auto" and gpus > 1:
        device = f"cuda:{shard[0] % gpus}"
    load = replace(spec, device=device).load
    return run(evaluation, dataset, load, _ToParent(), batch=spec.batch)


class _ToParent:
    """Progress that is told to the parent."""

    def start(self, total: int, done: int = 0) -> None:
        _TOLD[0].put(("start", total, done))

    def step(self, failure: str | None = None) -> None:
        _TOLD[0].put(("step", failure))
