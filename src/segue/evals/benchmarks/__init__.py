"""The table of benchmarks, and how one is found by what people type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segue.errors import ConfigError
from segue.evals import own_masks, scenes
from segue.evals.base import Benchmark

SCENES = (
    Benchmark(
        name="scenes_test",
        dataset="scene_questions",
        split="test",
        task="segment",
        options={"stills": 100, "clips": 30},
        score=scenes.score,
        reduce=scenes.reduce,
        headline="image cIoU",
        protocol="scenes/1",
    ),
)

BENCHMARKS: dict[str, Benchmark] = {one.name: one for one in SCENES}


def find(name: str, *, split: str | None = None) -> Benchmark:
    """The benchmark of a name, or that of a folder of one's own masks, of its test split if no other is named.

    Raises: ConfigError, if it is neither, naming what is known.
    """
    if name in BENCHMARKS:
        if split is not None:
            raise ConfigError(f"{name} is one split, {BENCHMARKS[name].split}; --split is for folders of your own")
        return BENCHMARKS[name]
    if Path(name).is_dir():
        return own_masks.benchmark(split or "test")
    raise ConfigError(f"there is no benchmark and no folder {name!r}; known benchmarks are {', '.join(BENCHMARKS)}")


def of_run(record: Mapping[str, Any]) -> Benchmark:
    """The benchmark that a run's record names.

    Raises: ConfigError, if this version has it no more, or with another protocol.
    """
    if record["benchmark"] == "own_masks":
        told = {name: record["options"].get(name) for name in ("phrase", "group")}
        return own_masks.benchmark(record["split"], **told)
    return find(record["benchmark"])
