"""Which frames of a video to look at. Pure functions of the frame count."""

from __future__ import annotations

import math
import re

import numpy as np

from segue.errors import ConfigError

_NAMED = re.compile(r"(first|uniform):([0-9]{1,6})")
_TIMED = re.compile(r"fps:([0-9]{1,4}(?:\.[0-9]{1,6})?)")
_LISTED = re.compile(r"[0-9]+(,[0-9]+)*")


def choose(plan: str, count: int, rate: float | None = None) -> tuple[int, ...]:
    """Frame numbers, from 0, that a plan takes from a video of `count` frames, `rate` a second where that is known.

    `first:k` takes the first k, or all if there are fewer. `uniform:k` spreads k over the whole video, first and last
    included (k = 1: the first); with fewer than k frames some **repeat**, and it always gives k. `0,4,9` takes just
    these, in this order. `fps:r` takes the frame that is shown at every 1/r-th of a second, and every frame once where
    the video has fewer.

    Raises: ConfigError, if the plan is none of these, asks for no frame, or names a frame the video does not have.
    Source: Sa2VA takes the first frames, Sa2VA-i `linspace(0, count - 1, k)` truncated to int.
    """
    if count < 1:
        raise ConfigError(f"cannot choose frames from a video of {count} frames; expected 1 or more")
    plan = plan.replace(" ", "")
    if named := _NAMED.fullmatch(plan):
        return _spread(named[1], int(named[2]), count)
    if _LISTED.fullmatch(plan):
        return _listed(plan, count)
    if timed := _TIMED.fullmatch(plan):
        return _timed(plan, float(timed[1]), count, rate)
    raise ConfigError(f"unknown frame plan {plan!r}; expected first:k, uniform:k, fps:r, or numbers such as 0,4,9")


def _spread(kind: str, number: int, count: int) -> tuple[int, ...]:
    if number < 1:
        raise ConfigError(f"frame plan {kind}:{number} takes no frame; expected 1 or more")
    if kind == "first":
        return tuple(range(min(number, count)))
    return tuple(np.linspace(0, count - 1, number).astype(int).tolist())


def _timed(plan: str, wanted: float, count: int, rate: float | None) -> tuple[int, ...]:
    if not wanted:
        raise ConfigError(f"frame plan {plan} takes no frame; expected more than 0 a second")
    if rate is None:
        raise ConfigError(f"frame plan {plan} needs a video with a clock; a folder or an array takes uniform:k")
    step = max(rate / wanted, 1.0)
    return tuple(int(number * step) for number in range(math.ceil(count / step)))


def _listed(plan: str, count: int) -> tuple[int, ...]:
    chosen = tuple(int(number) for number in plan.split(","))
    if max(chosen) >= count:
        raise ConfigError(f"frame plan asks for frame {max(chosen)}; the video has frames 0 to {count - 1}")
    return chosen
