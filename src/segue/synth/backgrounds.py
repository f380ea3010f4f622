"""What things stand before: plain colours, gradients, and noise that looks like clouds, soil or cloth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from segue.synth.painting import COLOURS, Colour, contrast

BACKGROUNDS = ("plain", "gradient", "noise")

LEAST_CONTRAST = 0.2
"""Between a thing's colour and every tone of the background, in OKLab."""


@dataclass(frozen=True, slots=True)
class Background:
    """A background before it has a size: its kind, and the two or three tones it is made of."""

    kind: str
    tones: tuple[Colour, ...]

    def colours(self) -> list[str]:
        """Names of the colours that things can have so that they stand out."""
        return [
            name
            for name, (main, _) in COLOURS.items()
            if min(contrast(main, tone) for tone in self.tones) >= LEAST_CONTRAST
        ]


def choose(rng: np.random.Generator, kinds: Sequence[str] = BACKGROUNDS) -> Background:
    """A background of one of these kinds, quiet enough for at least five colours to stand out."""
    kind = str(rng.choice(list(kinds)))
    while True:
        tones = _tones(rng, 1 if kind == "plain" else 3 if kind == "noise" else 2)
        background = Background(kind, tones)
        if len(background.colours()) >= 5:
            return background


def paint_background(
    background: Background, size: tuple[int, int], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Its pixels at a size of (height, width)."""
    tones = np.array(background.tones, dtype=np.float64)
    if background.kind == "plain":
        picture = np.tile(tones[0], (*size, 1))
    elif background.kind == "gradient":
        picture = _mixed(tones, _ramp(size, rng))
    else:
        picture = _mixed(tones, _fractal(size, rng))
    strength = rng.uniform(2, 7) if background.kind == "noise" else rng.uniform(0, 1.5)
    picture += rng.normal(0, strength, size)[..., None]
    pixels: np.ndarray = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return pixels


def _tones(rng: np.random.Generator, count: int) -> tuple[Colour, ...]:
    """Kindred muted colours: near in hue, apart in brightness."""
    hue, saturation, value = rng.uniform(), rng.uniform(0.04, 0.42), rng.uniform(0.22, 0.97)
    tones = []
    for _ in range(count):
        tones.append(_rgb(hue, saturation, value))
        hue += rng.uniform(-0.07, 0.07)
        saturation = float(np.clip(saturation + rng.uniform(-0.12, 0.12), 0.03, 0.5))
        value = float(np.clip(value + rng.choice([-1, 1]) * rng.uniform(0.08, 0.2), 0.15, 0.98))
    return tuple(tones)


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    sector = (hue % 1) * 6
    channels = [
        value * (1 - saturation * max(0.0, min(1.0, min((turn + sector) % 6, 4 - (turn + sector) % 6))))
        for turn in (5, 3, 1)
    ]
    red, green, blue = (round(255 * channel) for channel in channels)
    return red, green, blue


def _mixed(tones: Float[np.ndarray, "k 3"], mix: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """Tones blended along a map of values from 0 (the first) to 1 (the last)."""
    places = np.linspace(0, 1, len(tones))
    return np.stack([np.interp(mix, places, tones[:, channel]) for channel in range(3)], axis=-1)


def _ramp(size: tuple[int, int], rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """From 0 to 1 across the picture in some direction, or from some point outwards."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]] / (max(size) - 1)
    if rng.uniform() < 0.3:
        ramp = np.hypot(x - rng.uniform(0.2, 0.8), y - rng.uniform(0.2, 0.8))
    else:
        turn = rng.uniform(0, 2 * np.pi)
        ramp = np.cos(turn) * x + np.sin(turn) * y
    return _stretched(ramp)


def _fractal(size: tuple[int, int], rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Smooth noise of ever finer grain, each octave about half as strong as the last; sometimes drawn out sideways."""
    aspect, roughness = float(rng.choice([1.0, 1.0, 3.0, 0.4])), rng.uniform(0.42, 0.62)
    total = np.zeros(size)
    strength, cells = 1.0, rng.uniform(1.5, 4)
    while cells < min(size) / 2:
        grid = rng.normal(size=(max(2, round(cells * aspect) + 1), max(2, round(cells / aspect) + 1)))
        layer = Image.fromarray(grid.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        total += strength * np.asarray(layer)
        strength *= roughness
        cells *= 2
    return _stretched(total)


def _stretched(values: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    low, high = values.min(), values.max()
    stretched: np.ndarray = (values - low) / (high - low)
    return stretched
