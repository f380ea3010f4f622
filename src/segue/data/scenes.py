"""Generated scenes as a dataset: nothing lies on a disk, every row is drawn when it is asked for.

Row number `index` is scene `index` of the split's seed 0; see `segue.data.synth`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from segue.data.base import Rows
from segue.data.synth import clip, mixed_sample, regions_sample, scene
from segue.data.synth.scenes import Split
from segue.data.synth.wording import LANGUAGES
from segue.errors import ConfigError
from segue.types import Sample

_REGIONS = 0.25  # of the stills' dialogues are about marked regions
_ENGLISH = 0.65


def load(
    root: Path,
    split: str,
    *,
    kind: Literal["stills", "clips"] = "stills",
    count: int = 1_000_000,
    turns: int = 8,
    size: int | None = None,
    frames: int = 8,
    most: int = 6,
) -> Rows:
    """A row per scene of 2 to `most` things; its sample is a dialogue of `turns` turns. The root is not used.

    `size` is the side of square scenes in pixels, drawn by chance if not given; `frames` is of clips. Two thirds of
    the dialogues are in English, the others in Chinese.

    Raises: ConfigError, for a split that is not train, validation or test.
    """
    if split not in ("train", "validation", "test"):
        raise ConfigError(f"generated scenes have no split {split!r}; expected train, validation or test")
    make = partial(_sample, split=split, kind=kind, turns=turns, size=size, frames=frames, most=most)
    return Rows(f"scenes/{kind}/{split}", range(count), make)


def _sample(
    index: int,
    rng: np.random.Generator,
    *,
    split: Split,
    kind: str,
    turns: int,
    size: int | None,
    frames: int,
    most: int,
) -> Sample:
    language = LANGUAGES[int(rng.uniform() > _ENGLISH)]
    sides = None if size is None else (size, size)
    if kind == "clips":
        drawn = clip(0, index, split=split, size=sides, frames=frames, things=(2, most))
        return mixed_sample(drawn, rng, turns=turns, language=language)
    drawn = scene(0, index, split=split, size=sides, things=(2, most))
    if rng.uniform() < _REGIONS:
        return regions_sample(drawn, rng, language=language)
    return mixed_sample(drawn, rng, turns=turns, language=language)
