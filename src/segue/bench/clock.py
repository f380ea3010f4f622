"""The clock: processor time of this process on a CPU, else wall time while the device has nothing left to do."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter, process_time

import torch


def seconds_of(job: Callable[[], object], device: torch.device) -> float:
    """Seconds that a piece of work takes."""
    started = now(device)
    job()
    return now(device) - started


def now(device: torch.device) -> float:
    """Seconds since some moment; on a GPU, once it has done all that it was given."""
    if device.type == "cpu":
        return process_time()
    torch.accelerator.synchronize()
    return perf_counter()
