"""Generated scenes as a dataset: nothing lies on a disk, every row is drawn when it is asked for.

Row number `index` is scene `index` of the split's seed 0; see `segue.synth`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segue.data.base import Rows
from segue.errors import ConfigError
from segue.synth import clip, mixed_sample, regions_sample, scene
from segue.synth.scenes import Split, check_split, draw_size, generator
from segue.synth.wording import LANGUAGES
from segue.types import Sample

_REGIONS = 0.15  # of the stills' dialogues are about marked regions
_ENGLISH = 0.65
LEAST_LONGEST = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How scenes are drawn and what is asked about each.

    Sizes are drawn by chance; with `longest`, larger scenes are drawn as many pixels small on their longer side, in the
    same shape. A scene has 2 to `most` things, a clip `frames` frames, a dialogue `turns` turns.
    """

    kind: Literal["stills", "clips"] = "stills"
    longest: int | None = None
    most: int = 6
    frames: int = 8
    turns: int = 8


def load(root: Path, split: str, *, count: int = 1_000_000, **drawing: Any) -> Rows:
    """A row per scene, drawn with the fields of `Drawing`; its sample is a dialogue. The root is not used.

    Two thirds of the dialogues are in English, the others in Chinese.

    Raises: ConfigError, for a split that is not train, validation or test, or a field that `Drawing` does not have,
        or a `longest` below 128.
    """
    chosen = check_split(split)
    known = [one.name for one in fields(Drawing)]
    if unknown := sorted(set(drawing) - set(known)):
        raise ConfigError(f"generated scenes have no option {', '.join(unknown)}; known are {', '.join(known)}")
    how = Drawing(**drawing)
    if how.longest is not None and how.longest < LEAST_LONGEST:
        raise ConfigError(
            f"scenes cannot be drawn {how.longest} pixels long: some are half as high; expected {LEAST_LONGEST} or more"
        )
    return Rows(f"scenes/{how.kind}/{split}", range(count), partial(_sample, split=chosen, how=how))


def _sample(index: int, rng: np.random.Generator, *, split: Split, how: Drawing) -> Sample:
    language = LANGUAGES[int(rng.uniform() > _ENGLISH)]
    size = _size(index, split, how)
    if how.kind == "clips":
        drawn = clip(0, index, split=split, size=size, frames=how.frames, things=(2, how.most))
        return mixed_sample(drawn, rng, turns=how.turns, language=language)
    drawn = scene(0, index, split=split, size=size, things=(2, how.most))
    if rng.uniform() < _REGIONS:
        return regions_sample(drawn, rng, language=language)
    return mixed_sample(drawn, rng, turns=how.turns, language=language)


def _size(index: int, split: Split, how: Drawing) -> tuple[int, int] | None:
    if how.longest is None:
        return None
    height, width = draw_size(generator(f"{how.kind} size", split, 0, index))
    scale = min(1.0, how.longest / max(height, width))
    return round(height * scale), round(width * scale)
