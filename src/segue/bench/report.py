"""What one run of the benchmark found: stages, ratios between them, and their shares of what the machine can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from segue.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """What to measure: for which numbers of objects, on a clip of how many frames, everything else how often.

    Ratios are against the first of `objects`. The clip is answered once for each of them.
    """

    objects: tuple[int, ...] = (1, 4, 16)
    frames: int = 6
    repeats: int = 3

    def __post_init__(self) -> None:
        if not self.objects or min(self.objects) < 1 or len(set(self.objects)) < len(self.objects):
            raise ConfigError(
                f"objects {self.objects} cannot be measured; give different numbers from 1, such as 1,4,16"
            )
        if self.frames < 1 or self.repeats < 1:
            raise ConfigError(f"{self.frames} frames and {self.repeats} repeats given; expected at least one of each")


@dataclass(frozen=True, slots=True)
class StageTiming:
    """`count` units of work and the seconds they took each time; `objects` is `None` where it plays no part.

    `flops` is the arithmetic of all units, and `bytes` what must be read from memory for them, where one of the two
    bounds the stage and was counted.
    """

    name: str
    objects: int | None
    count: int
    unit: str
    seconds: tuple[float, ...]
    flops: float | None = None
    bytes: float | None = None

    @property
    def least(self) -> float:
        """The seconds of the quickest time, which others on the machine disturbed least."""
        return min(self.seconds)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as much a stage costs for `objects` objects as for `base` of them, quickest against quickest.

    `lowest` and `highest` are over the repeats, in each of which one was measured right after the other.
    """

    name: str
    objects: int
    base: int
    value: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Encodes:
    """How many frames went through SAM 2's image encoder while one question about a medium was answered."""

    medium: str
    objects: int
    frames: int
    encoded: int


@dataclass(frozen=True, slots=True)
class MachineLimits:
    """What this machine was measured to do in the model's precision: bytes per second, read and written together, of a
    large copy, and operations per second of a large matrix product.
    """

    bandwidth: float
    products: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """All that one run found. `clock` says what a second is.

    `peak_bytes` is the peak of the GPU's memory, else of this whole process; `None` where the system does not tell.
    """

    model: Mapping[str, Any]
    machine: Mapping[str, Any]
    plan: BenchPlan
    clock: str
    stages: tuple[StageTiming, ...]
    encodes: tuple[Encodes, ...]
    limits: MachineLimits
    weight_bytes: int
    peak_bytes: int | None

    @property
    def ratios(self) -> tuple[Ratio, ...]:
        """What more objects cost, stage by stage."""
        return tuple(
            _ratio(base, other)
            for base in self.stages
            for other in self.stages
            if base.name == other.name and base.objects == self.plan.objects[0] and other.objects != base.objects
        )

    def share(self, stage: StageTiming) -> float | None:
        """How much of the limit that bounds a stage it reaches, 1 being all; `None` where none was counted."""
        if stage.flops is not None:
            return stage.flops / stage.least / self.limits.products
        return None if stage.bytes is None else stage.bytes / stage.least / self.limits.bandwidth

    def as_json(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        shares = [self.share(stage) for stage in self.stages]
        stages = [{**asdict(stage), "share": share} for stage, share in zip(self.stages, shares, strict=True)]
        return {**asdict(self), "stages": stages, "ratios": [asdict(ratio) for ratio in self.ratios]}


def _ratio(base: StageTiming, other: StageTiming) -> Ratio:
    if base.objects is None or other.objects is None:
        raise ValueError(f"the number of objects plays no part in {base.name}")
    pairs = [more / one for one, more in zip(base.seconds, other.seconds, strict=True)]
    return Ratio(base.name, other.objects, base.objects, other.least / base.least, min(pairs), max(pairs))
