"""The same run on a Ray cluster: an actor with a model of its own for each GPU, or for each CPU where there is none.

Paths go out and records come back; pixels and masks stay where they are read and written, so that all machines must see
inputs, output folder and model under the same paths; what lies in an object store is fetched by the actor that does it.
An actor that dies, with or without its machine, is replaced, and what it was at is done again, a few times; after that
it is a failure of the input. Ray's own retries are off: they would count for an actor, and not for an input.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from segue.errors import ConfigError, SegueError
from segue.jobs import manifest
from segue.jobs.manifest import Record
from segue.jobs.run import AHEAD, Attempt, Attempting, BatchJob, Segment, attempt
from segue.jobs.stored import Source

log = logging.getLogger(__name__)

TRIES = 3
"""How often an input is begun before its workers' deaths are taken for its own fault."""
PATIENCE = 10.0
"""Seconds in which a new worker finds room on the cluster, before those at work are made do with."""


def on(runner: str) -> Attempting:
    """The cluster of a name: `ray` is the one that `RAY_ADDRESS` names, or one of this machine; else `ray://HOST:PORT`.

    Raises: ConfigError, for another name, and without Ray.
    """
    if runner != "ray" and not runner.startswith("ray://"):
        raise ConfigError(f"there is no runner {runner!r}; expected local, ray or ray://HOST:PORT")
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError("the runner ray needs Ray; install it with: pip install 'segue[ray]'") from error
    return partial(_attempting, address=None if runner == "ray" else runner)


@contextmanager
def cluster(address: str | None = None) -> Iterator[tuple[int, dict[str, int]]]:
    """A connection to a cluster: how many models it has room for, and what each takes, a GPU or else a CPU.

    Raises: ConfigError, if there is none at the address, or none can be started here.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    is_ours = not ray.is_initialized()
    own = {} if address or "RAY_ADDRESS" in os.environ else {"include_dashboard": False}  # nobody needs another port
    if is_ours:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except Exception as error:
            # a node of this machine that does not start raises a bare one
            if not isinstance(error, ConnectionError | ValueError) and type(error) is not Exception:
                raise
            place = address or os.environ.get("RAY_ADDRESS", "this machine")
            raise ConfigError(f"there is no Ray cluster at {place}: {error}") from error
    gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
    try:
        yield gpus or cpus or 1, {"num_gpus": 1} if gpus else {"num_cpus": 1}
    finally:
        if is_ours:
            ray.shutdown()


class Worker:
    """What an actor is: a model that is loaded once, and does one input after another."""

    def __init__(self, job: BatchJob, load: Callable[[], Segment]):
        self._job, self._load = job, cache(load)

    def attempt(self, source: Source, folder: Path) -> Record | str:
        """The record of an input, or the words of an error that is no fault of the input and ends the run."""
        try:
            with manifest.disk_errors(self._job.out):
                return attempt(source, folder, self._job, self._load)
        except SegueError as error:
            return str(error)


class _Workers:
    """Those that wait for work, and how another is made."""

    def __init__(self, make: Callable[[], Any]):
        self._make = make
        self._idle: SimpleQueue[Any] = SimpleQueue()

    def take(self) -> Any:
        """One that waits for work, or a new one; while the cluster has no room for it, whichever is free first."""
        import ray

        with suppress(Empty):
            return self._idle.get_nowait()
        new = self._make()
        is_there, is_told = new.__ray_ready__.remote(), False
        while not ray.wait([is_there], timeout=PATIENCE)[0]:
            with suppress(Empty):
                return self._idle.get_nowait()
            if not is_told:
                log.warning("no room for another worker yet, or it starts slowly (has a machine gone?); others go on")
            is_told = True
        return new

    def give_back(self, worker: Any) -> None:
        self._idle.put(worker)

    def forget_idle(self) -> None:
        with suppress(Empty):
            while True:
                self._idle.get_nowait()


@contextmanager
def _attempting(job: BatchJob, load: Callable[[], Segment], *, address: str | None) -> Iterator[tuple[Attempt, int]]:
    """A thread for each worker that there is room for at the start; after the loss of a machine they share fewer."""
    import ray

    with cluster(address) as (room, takes):
        workers, pool = _Workers(partial(ray.remote(**takes)(Worker).remote, job, load)), ThreadPoolExecutor(room)
        try:
            yield lambda source, folder: pool.submit(_do, workers, job, source, folder), AHEAD * room
        finally:
            pool.shutdown(cancel_futures=True)


def _do(workers: _Workers, job: BatchJob, source: Source, folder: Path) -> Record:
    """The record of a source, by a worker; where that dies by another.

    Raises: SegueError, for what is no fault of the source.
    """
    import ray

    for number in range(1, TRIES + 1):
        try:
            worker = workers.take()
            found = ray.get(worker.attempt.remote(source, folder))
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
            log.warning("a worker died at %s (%d of %d)", source.name, number, TRIES)
            reason = " ".join(str(error).split())[:200]
            workers.forget_idle()  # they may have gone with its machine
            continue
        workers.give_back(worker)
        if isinstance(found, str):
            raise SegueError(found)
        return found
    told = SegueError(f"{source}: its worker died {TRIES} times, which may be its fault; try it alone: {reason}")
    return manifest.failure(source, told, asked=job.phrases, folder=folder, settings=job.fingerprint, seconds=0.0)
