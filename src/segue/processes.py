"""Worker processes: started alike wherever there are several, each with its share of the threads, none left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from threading import Thread
from typing import Any

from segue.errors import SegueError


def cores() -> int:
    """How many cores this process may use; fewer, where OMP_NUM_THREADS asks for that."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(own_cores(), int(asked)) if asked.isdecimal() and int(asked) else own_cores()


def own_cores() -> int:
    """How many cores this process may use, whatever OMP_NUM_THREADS asks of its threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def pool(workers: int, begin: Callable[..., None] | None = None, *given: Any) -> Iterator[ProcessPoolExecutor]:
    """So many processes, each begun by `begin(*given)`, as tasks come; they share the cores.

    They end with the block, at once where it ends by an error or by Ctrl-C, and when this process is killed.

    Raises: SegueError, if one of them dies; what tasks raise.
    """
    context = multiprocessing.get_context("spawn")
    threads, others = max(1, cores() // workers), set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, context, _begin, (threads, begin, given)) as executor:
        try:
            yield executor
        except BrokenProcessPool as error:
            raise SegueError(
                "a worker process died, perhaps for want of memory; what is finished is kept: give fewer --workers, "
                "and the same command goes on. A script of your own that starts workers needs "
                "`if __name__ == '__main__':` around what it does"
            ) from error
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


def _begin(threads: int, begin: Callable[..., None] | None, given: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends the others
    Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:  # which reads the variable once
        sys.modules["torch"].set_num_threads(threads)
    if begin is not None:
        begin(*given)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers have one"
    parent.join()
    os._exit(1)
