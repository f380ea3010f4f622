"""The table of benchmarks, and how one is found by what people type."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from segue.errors import ConfigError
from segue.evals.base import Benchmark
from segue.evals.benchmarks.segmentation import PIXELS
from segue.evals.benchmarks.vqa import WORDS
from segue.evals.metrics import own_masks, scenes

_DRAWN = {"stills": 100, "clips": 30}
SCENES = tuple(
    Benchmark(
        name=f"scenes_{split}",
        dataset="scene_questions",
        split=split,
        task="segment",
        media=sum(_DRAWN.values()),
        options=_DRAWN,
        score=scenes.score,
        reduce=scenes.reduce,
        headline="image cIoU",
        protocol="scenes/1",
    )
    for split in ("test", "validation")
)

BENCHMARKS: dict[str, Benchmark] = {one.name: one for one in (*SCENES, *PIXELS, *WORDS)}

_UPSTREAM = "_upstream"


def find(name: str, *, protocol: str | None = None, **own: str | None) -> Benchmark:
    """The benchmark of a name, or that of a folder of one's own masks, of its test split if no other is named.

    `own` are split, phrase and group, for folders of one's own alone (`segue.evals.metrics.own_masks.benchmark`).
    `protocol` "upstream" is the original's way to score where that has a defect, which few benchmarks have.

    Raises: ConfigError, if it is neither, naming what is known.
    """
    if protocol is not None:
        if f"{name}_{protocol}" not in BENCHMARKS:
            having = ", ".join(one.removesuffix(_UPSTREAM) for one in BENCHMARKS if one.endswith(_UPSTREAM))
            raise ConfigError(f"{name} has no protocol {protocol!r}; `upstream` is one of {having or 'none'}")
        return find(f"{name}_{protocol}", **own)
    given = {word: value for word, value in own.items() if value is not None}
    if name in BENCHMARKS:
        if given:
            raise ConfigError(f"{name} says itself what it asks; {', '.join(given)} are for folders of your own")
        return BENCHMARKS[name]
    if Path(name).is_dir():
        return own_masks.benchmark(**{"split": "test", **given})
    near = get_close_matches(name, BENCHMARKS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"there is no benchmark and no folder {name!r}; {hint}`segue evaluate list` lists the benchmarks")


def of_run(record: Mapping[str, Any]) -> Benchmark:
    """The benchmark that a run's record names.

    Raises: ConfigError, if this version has it no more, or with another protocol.
    """
    if record["benchmark"] == "own_masks":
        told = {name: record["options"].get(name) for name in ("phrase", "group")}
        return own_masks.benchmark(record["split"], **told)
    return find(record["benchmark"])
