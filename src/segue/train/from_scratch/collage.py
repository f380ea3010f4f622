"""Pictures to learn sight from: things of many scenes pasted into one, and pictures that are no drawings at all.

A picture costs a tenth of a drawn one and shows twice as many things. Names stay true: a thing keeps its kind, colour,
texture and size, for it comes from a scene of about the same shape, and nothing is pasted where it would not stand out.

Letters in shapes: k things, t the side of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from segue.models.tiling import resize
from segue.synth import Scene
from segue.synth.backgrounds import BACKGROUNDS
from segue.synth.drawings import KINDS
from segue.synth.meaning import Thing
from segue.synth.painting import COLOURS, TEXTURES
from segue.synth.scenes import SIZES

NAMES: tuple[tuple[str, ...], ...] = (KINDS, tuple(COLOURS), TEXTURES, tuple(SIZES))
"""What a thing can be, attribute by attribute; things are told by numbers in these."""

_NEIGHBOURS = 150  # in order of shape
_ATTEMPTS, _PLACES = 2, 6
_PLAIN, _NOT_SMALL = 0.35, 0.65  # how often such things are taken, against small ones with a texture
_LARGE = 0.12  # of the tile, as a box
_CROWDED, _TOUCHING, _HIDDEN, _FAINT = 0.4, 0.02, 0.08, 70


@dataclass(frozen=True, slots=True)
class Collage:
    """A tile, how much of each pixel is which thing (0 to 255), and what the things are.

    `things` are numbers in `NAMES`; `covers` says of each thing whether another hides part of it, and whether it hides
    part of another. `background` is a number in `BACKGROUNDS`, or their count for what is no drawing.
    """

    tile: UInt8[np.ndarray, "t t 3"]
    masks: UInt8[np.ndarray, "k t t"]
    things: Int[np.ndarray, "k 4"]
    covers: Bool[np.ndarray, "k 2"]
    background: int


def kept(scene: Scene, side: int, frame: int = 0) -> Collage:
    """A still, or a frame of a clip, as it is, stretched to a tile of this side."""
    whole, areas = scene.whole[:, frame], scene.areas[:, frame]
    under = [
        [(one & other).sum() >= _HIDDEN * area and number < nearer for nearer, other in enumerate(whole)]
        for number, (one, area) in enumerate(zip(whole, areas, strict=True))
    ]
    return Collage(
        np.asarray(resize(Image.fromarray(scene.frames[frame]), side, side)),
        np.stack([_shrunk(mask, side) for mask in scene.visible[:, frame]]),
        np.array([numbers(thing) for thing in scene.things]),
        np.stack([np.any(under, axis=1), np.any(under, axis=0)], axis=1),
        BACKGROUNDS.index(scene.background),
    )


def numbers(thing: Thing) -> tuple[int, ...]:
    """A thing's attributes as numbers in `NAMES`."""
    values = (thing.kind, thing.colour, thing.texture, thing.size)
    return tuple(names.index(value) for names, value in zip(NAMES, values, strict=True))


class Collages:
    """Makes collages of scenes that were kept; `shapes` are their widths as multiples of their heights."""

    def __init__(self, scenes: Sequence[Collage], shapes: Sequence[float]):
        self.scenes = scenes
        self.order = np.argsort(shapes, kind="stable")
        self.rank = np.empty(len(scenes), dtype=np.int64)
        self.rank[self.order] = np.arange(len(scenes))

    def make(self, rng: np.random.Generator, *, most: int = 6) -> Collage:
        """A scene by chance with two to `most` things of others, mirrored or not."""
        number = int(rng.integers(len(self.scenes)))
        base = self.scenes[number]
        sheet = _Sheet(base.tile.copy(), list(base.masks.copy()), list(base.things), base.covers.tolist())
        wanted = int(rng.integers(2, most + 1))
        for _ in range(wanted * _ATTEMPTS):
            if wanted and sheet.paste(*self._thing(number, rng), rng):
                wanted -= 1
        tile, masks = sheet.tile, np.stack(sheet.masks)
        if rng.uniform() < 0.5:
            tile, masks = tile[:, ::-1], masks[..., ::-1]
        return Collage(tile, masks, np.stack(sheet.things), np.array(sheet.covers, dtype=bool), base.background)

    def _thing(self, number: int, rng: np.random.Generator) -> tuple[Collage, int]:
        """A thing of a scene of about the same shape as that of this number, more often one that is hard to tell."""
        near = self.rank[number] + rng.integers(-_NEIGHBOURS, _NEIGHBOURS + 1)
        scene = self.scenes[self.order[int(np.clip(near, 0, len(self.scenes) - 1))]]
        is_plain, is_larger = scene.things[:, 2] == TEXTURES.index("plain"), scene.things[:, 3] > 0
        weights = np.where(is_plain, _PLAIN, 1.0) * np.where(is_larger, _NOT_SMALL, 1.0)
        return scene, int(rng.choice(len(weights), p=weights / weights.sum()))


@dataclass(slots=True)
class _Sheet:
    """A collage while it is made."""

    tile: UInt8[np.ndarray, "t t 3"]
    masks: list[UInt8[np.ndarray, "t t"]]
    things: list[Int[np.ndarray, " 4"]]
    covers: list[list[bool]]

    def paste(self, donor: Collage, thing: int, rng: np.random.Generator) -> bool:
        """Paste a thing somewhere, if there is a place where it stands out and does not hide too much."""
        side, cut = len(self.tile), _cut(donor, thing)
        if cut is None or donor.covers[thing, 0]:
            return False
        pixels, alpha = cut
        height, width = alpha.shape
        if height * width > _LARGE * side**2 and rng.uniform() < 0.7:
            return False
        if rng.uniform() < 0.5:
            pixels, alpha = pixels[:, ::-1], alpha[:, ::-1]
        hard = alpha > 127
        for _ in range(_PLACES):
            top, left = int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1))
            here = np.s_[top : top + height, left : left + width]
            shares = np.array([_share(hard, mask[here] > 127, mask > 127) for mask in self.masks])
            is_faint = np.abs(self.tile[here][hard].mean(0) - pixels[hard].mean(0)).sum() < _FAINT
            if is_faint or shares.max() > _CROWDED or (shares.max() > _TOUCHING and rng.uniform() < 0.7):
                continue
            self._lay(pixels, alpha, here, shares)
            self.things.append(donor.things[thing])
            return True
        return False

    def _lay(self, pixels: np.ndarray, alpha: np.ndarray, here: tuple[slice, slice], shares: np.ndarray) -> None:
        share = alpha[..., None].astype(np.float32) / 255
        self.tile[here] = self.tile[here] * (1 - share) + pixels * share
        for number, mask in enumerate(self.masks):
            mask[here] = mask[here] * (1 - share[..., 0])
            self.covers[number][0] |= bool(shares[number] >= _HIDDEN)
        whole = np.zeros_like(self.masks[0])
        whole[here] = alpha
        self.masks.append(whole)
        self.covers.append([False, bool((shares >= _HIDDEN).any())])


def undrawn(rng: np.random.Generator, side: int) -> Collage:
    """A picture with the statistics of photographs, textures or noise, in which nothing is drawn."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    picture = rng.uniform(30, 225, 3) + np.zeros((side, side, 1))
    kind = int(rng.integers(6))
    if kind == 0:
        picture = rng.uniform(0, 255, (side, side, 3))
    elif kind == 1:
        turn, period = rng.uniform(0, np.pi), rng.uniform(3, 30)
        wave = np.sin((np.cos(turn) * columns + np.sin(turn) * rows) * side / period * 2 * np.pi)
        picture = picture + wave[..., None] * rng.uniform(-90, 90, 3) + _noise(side, 1.0, rng) * rng.uniform(2, 30)
    elif kind == 2:
        slope = np.cos(rng.uniform(0, 6.3)) * columns + np.sin(rng.uniform(0, 6.3)) * rows
        picture = picture + slope[..., None] * rng.uniform(-160, 160, 3) + _noise(side, 1.0, rng) * rng.uniform(0, 8)
    else:
        picture = picture + _noise(side, rng.uniform(0.8, 1.9), rng) * rng.uniform(15, 60)
        for _ in range(int(rng.integers(7))):
            field = _noise(side, rng.uniform(1.3, 2.2), rng)
            edge = 1 / (1 + np.exp(-(field - np.quantile(field, rng.uniform(0.5, 0.95))) * rng.uniform(3, 60)))
            texture = _noise(side, rng.uniform(0.7, 1.8), rng) * rng.uniform(5, 45)
            shade = rows[..., None] * rng.uniform(-60, 60)
            picture = picture * (1 - edge) + edge * (rng.uniform(10, 245, 3) + texture + shade)
    tile = np.clip(picture, 0, 255).astype(np.uint8)
    empty = np.zeros((0, side, side), dtype=np.uint8)
    return Collage(tile, empty, np.zeros((0, 4), dtype=np.int64), np.zeros((0, 2), dtype=bool), len(BACKGROUNDS))


def _noise(side: int, fall: float, rng: np.random.Generator) -> Float[np.ndarray, "t t 1"]:
    """Noise whose strength falls with the given power of frequency, of mean 0 and deviation 1."""
    distance = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    distance[0, 0] = 1
    waves = (rng.normal(size=distance.shape) + 1j * rng.normal(size=distance.shape)) / distance**fall
    waves[0, 0] = 0
    noise = np.fft.irfft2(waves, (side, side))
    return np.asarray(noise / (noise.std() + 1e-6))[..., None]


def _cut(scene: Collage, thing: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]] | None:
    """A thing's pixels and how much of each is its own, as large as its box; None if there are none."""
    rows, columns = (np.flatnonzero((scene.masks[thing] > 0).any(axis)) for axis in (1, 0))
    if not len(rows) or not (scene.masks[thing] > 127).any():
        return None
    here = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return scene.tile[here], scene.masks[thing][here]


def _share(hard: Bool[np.ndarray, "h w"], under: Bool[np.ndarray, "h w"], whole: Bool[np.ndarray, "t t"]) -> float:
    """How much of a thing would be hidden."""
    return float((hard & under).sum() / max(1, whole.sum()))


def _shrunk(mask: Bool[np.ndarray, "h w"], side: int) -> UInt8[np.ndarray, "t t"]:
    """How much of each pixel of a tile lies in a mask."""
    whole = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(whole.resize((side, side), Image.Resampling.BOX))
