"""Several processes on one run: each asks its own shard, and the parent tells how all of them get on.

PyTorch is imported by the workers alone: the parent reads the data while they do.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from multiprocessing.queues import Queue
from queue import Empty
from typing import TYPE_CHECKING, Any

from segue import processes
from segue.data.base import Dataset
from segue.evals.run.evaluation import EvaluationSpec
from segue.progress import Progress

if TYPE_CHECKING:
    from segue.features import Usage

_TOLD: list[Queue[tuple[Any, ...]]] = []
"""Where a worker says how it gets on; set once when its process starts."""


def run_workers(spec: EvaluationSpec, open_data: Callable[[], Dataset], workers: int, progress: Progress) -> Usage:
    """Run an evaluation in so many processes; where there are several GPUs, each has its own. Returns what `run` does.

    `open_data` gives its data, which can be pickled; it is called while the processes start.

    Raises: SegueError, as `run` does, and if a worker dies; what `open_data` raises.
    """
    told: Queue[tuple[Any, ...]] = multiprocessing.get_context("spawn").Queue()
    with processes.pool(workers, _begin, told) as pool:
        for _ in range(workers):
            pool.submit(_import)  # a process starts when there is something to do
        dataset = open_data()
        shards = [pool.submit(_work, spec, dataset, (number, workers)) for number in range(workers)]
        _pass_on(told, shards, progress)
        first, *others = (shard.result() for shard in shards)
        return sum(others, first)


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


def _import() -> None:
    """Import what asking needs, which takes seconds, while the parent reads the data."""
    from segue import loading  # noqa: F401
    from segue.evals.run import runner  # noqa: F401


def _work(spec: EvaluationSpec, dataset: Dataset, shard: tuple[int, int]) -> Usage:
    import torch

    from segue.evals.run.runner import run

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
