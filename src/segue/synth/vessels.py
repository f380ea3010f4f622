"""Vessels: branching thin curves over uneven tissue, a stand-in for frames of an angiogram, with exact masks.

Everything follows from (split, seed, index) alone, and splits never meet, as with scenes. `FRAMES` images in a row show
one patient: the same tissue and the same tree, shifted a little, at another moment of the contrast agent and with new
noise. Letters in shapes: h w pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFilter

from segue.synth.scenes import Split, checked_size, generator
from segue.synth.wording import Language

FRAMES = 4
"""Images of one patient."""
PHRASE: Mapping[Language, str] = {"en": "vessel", "zh": "血管"}
"""What is asked for: the whole tree."""
SIDES = (192, 320)
"""The least and the greatest side of an image, in pixels."""
WIDTHS = (2.0, 6.0)
"""Of a twig and of the trunk at its root, in pixels."""

_FINER = 4  # curves are drawn so many times as large and shrunk, for exact edges and soft ones
_STEP = 3.0  # pixels from one point of a curve to the next
_GENERATIONS = 5

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A piece of a curve between two points (x, y), in pixels of the image, and how wide it is there."""

    start: Point
    stop: Point
    width: float


@dataclass(frozen=True, slots=True)
class Vessels:
    """One image, the mask of its tree, and the patient it belongs to, who is in one split only."""

    name: str
    group: str
    pixels: UInt8[np.ndarray, "h w 3"]
    mask: Bool[np.ndarray, "h w"]


@dataclass(frozen=True, slots=True)
class _Patient:
    """What stays from one image of a patient to the next; the tissue is 0 (dark) to 1 (bright)."""

    tissue: Float[np.ndarray, "h w"]
    tree: tuple[Stretch, ...]
    is_bright: bool
    contrast: float


def vessels(seed: int, index: int, *, split: Split = "train", size: tuple[int, int] | None = None) -> Vessels:
    """Image number `index` of a seed; the same arguments give the same image, in any process.

    `size` is (height, width) in pixels; without one, sides are drawn between `SIDES` for each patient.

    Raises: ConfigError, for numbers out of range.
    """
    patient = _patient(generator("patient", split, seed, index // FRAMES), size)
    rng = generator("vessels", split, seed, index)
    shift, turn = rng.uniform(-4, 4, 2), rng.uniform(-0.03, 0.03)
    height, width = patient.tissue.shape
    tree = [_moved(stretch, (width / 2, height / 2), shift, turn) for stretch in patient.tree]
    cover = _drawn(tree, (height, width))
    agent = patient.contrast * rng.uniform(0.8, 1.15)
    return Vessels(
        f"{split}-{seed}-{index:06d}",
        f"{split}-{seed}-patient-{index // FRAMES:05d}",
        _exposed(patient, cover, agent, rng),
        cover >= 0.5,
    )


def _patient(rng: np.random.Generator, size: tuple[int, int] | None) -> _Patient:
    height, width = checked_size(size) if size else (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    tissue = 0.6 * _cloud((height, width), 2.5, 0.55, rng) + 0.25 * _shade((height, width), rng)
    tissue += 0.15 * _cloud((height, width), 14.0, 0.6, rng)
    for _ in range(int(rng.integers(1, 4))):
        tissue = _with_rib(tissue, rng)
    low, high = tissue.min(), tissue.max()
    is_bright = bool(rng.uniform() < 0.25)
    floor, ceiling = (0.15, 0.55) if is_bright else (0.42, 0.85)
    tissue = floor + (ceiling - floor) * (tissue - low) / (high - low)
    return _Patient(tissue, _tree((height, width), rng), is_bright, float(rng.uniform(0.3, 0.5)))


def _tree(frame: tuple[int, int], rng: np.random.Generator) -> tuple[Stretch, ...]:
    """A trunk that comes in at an edge, and what branches off it; no part is thinner than `WIDTHS` allows."""
    height, width = frame
    turn = rng.uniform(0, 2 * np.pi)
    root = width / 2 * (1 + np.cos(turn)), height / 2 * (1 + np.sin(turn))
    heading = turn + np.pi + rng.uniform(-0.35, 0.35)
    stretches: list[Stretch] = []
    waiting = [(root, heading, rng.uniform(0.75, 1.0) * WIDTHS[1], 0)]
    while waiting:
        place, heading, thickness, generation = waiting.pop(0)
        length = rng.uniform(0.28, 0.5) * min(frame) * 0.85**generation
        curve, end, heading = _curve(place, heading, thickness, length, rng)
        stretches += curve
        if generation + 1 == _GENERATIONS or not (0 < end[0] < width and 0 < end[1] < height):
            continue
        spread = rng.uniform(0.35, 0.7)
        side = rng.choice([-1, 1])
        for sign, share in ((side, rng.uniform(0.72, 0.85)), (-side, rng.uniform(0.5, 0.75))):
            waiting.append((end, heading + sign * spread, max(WIDTHS[0], share * thickness), generation + 1))
        if generation:
            twig = curve[len(curve) // 2]
            along = np.arctan2(twig.stop[1] - twig.start[1], twig.stop[0] - twig.start[0])
            waiting.append((twig.stop, float(along + side), WIDTHS[0], _GENERATIONS - 1))
    return tuple(stretches)


def _curve(
    place: Point, heading: float, thickness: float, length: float, rng: np.random.Generator
) -> tuple[list[Stretch], Point, float]:
    """A winding line that thins by an eighth, its end, and where it points there."""
    stretches = []
    bend, count = 0.0, max(2, round(length / _STEP))
    for number in range(count):
        bend = 0.82 * bend + rng.normal(0, 0.025)
        heading += bend
        following = place[0] + _STEP * np.cos(heading), place[1] + _STEP * np.sin(heading)
        width = max(WIDTHS[0], thickness * (1 - 0.125 * number / count))
        stretches.append(Stretch(place, following, width))
        place = following
    return stretches, place, heading


def _moved(stretch: Stretch, centre: Point, shift: Float[np.ndarray, " 2"], turn: float) -> Stretch:
    def moved(point: Point) -> Point:
        x, y = point[0] - centre[0], point[1] - centre[1]
        return (
            float(centre[0] + x * np.cos(turn) - y * np.sin(turn) + shift[0]),
            float(centre[1] + x * np.sin(turn) + y * np.cos(turn) + shift[1]),
        )

    return Stretch(moved(stretch.start), moved(stretch.stop), stretch.width)


def _drawn(tree: list[Stretch], frame: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """How much of each pixel the tree covers, 0 to 1."""
    height, width = frame
    canvas = Image.new("L", (width * _FINER, height * _FINER))
    pen = ImageDraw.Draw(canvas)
    for stretch in tree:
        ends = [(x * _FINER, y * _FINER) for x, y in (stretch.start, stretch.stop)]
        radius = stretch.width * _FINER / 2
        pen.line(ends, fill=255, width=round(2 * radius))
        for x, y in ends:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    cover: np.ndarray = np.asarray(canvas.reduce(_FINER), np.float64) / 255
    return cover


def _exposed(
    patient: _Patient, cover: Float[np.ndarray, "h w"], agent: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Tissue with the tree in it as a detector sees it: a little blurred, unevenly filled, and grainy."""
    soft = Image.fromarray((cover * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7))
    depth = np.asarray(soft, np.float64) / 255 * agent
    depth *= 0.65 + 0.5 * _cloud(patient.tissue.shape, 3.0, 0.5, rng)
    light = patient.tissue + depth * (1 - patient.tissue) if patient.is_bright else patient.tissue * (1 - depth)
    grain = rng.normal(0, 1, light.shape) * np.sqrt(light) * rng.uniform(0.025, 0.045)
    grey = np.clip(np.rint(255 * (light + grain)), 0, 255).astype(np.uint8)
    pixels: np.ndarray = np.repeat(grey[..., None], 3, axis=-1)
    return pixels


def _with_rib(tissue: Float[np.ndarray, "h w"], rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """A broad soft arc over the tissue, far wider than any vessel."""
    height, width = tissue.shape
    y, x = np.mgrid[0:height, 0:width]
    reach = rng.uniform(0.8, 1.8) * max(height, width)
    turn = rng.uniform(0, 2 * np.pi)
    centre = width / 2 + reach * np.cos(turn), height / 2 + reach * np.sin(turn)
    off = np.hypot(x - centre[0], y - centre[1]) - reach * rng.uniform(0.75, 1.25)
    breadth = rng.uniform(14, 26)
    return tissue - rng.uniform(0.04, 0.1) / (1 + np.exp((np.abs(off) - breadth) / 3))


def _shade(frame: tuple[int, int], rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Bright in the middle, or a little beside it, and dark towards the corners."""
    y, x = np.mgrid[0 : frame[0], 0 : frame[1]]
    distance = np.hypot(x / frame[1] - rng.uniform(0.35, 0.65), y / frame[0] - rng.uniform(0.35, 0.65))
    shade: np.ndarray = 1 - distance**2
    return shade


def _cloud(
    frame: tuple[int, ...], cells: float, roughness: float, rng: np.random.Generator
) -> Float[np.ndarray, "h w"]:
    """Smooth noise from 0 to 1, its coarsest blots `cells` to a side, each octave `roughness` as strong as the last."""
    total, strength = np.zeros(frame), 1.0
    while cells < min(frame) / 3:
        grid = rng.normal(size=(round(cells) + 2, round(cells) + 2)).astype(np.float32)
        total += strength * np.asarray(Image.fromarray(grid).resize((frame[1], frame[0]), Image.Resampling.BICUBIC))
        cells, strength = 2 * cells, strength * roughness
    cloud: np.ndarray = (total - total.min()) / (total.max() - total.min())
    return cloud
