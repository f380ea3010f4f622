"""Things and backgrounds as pixels, with the exact truth of where every thing is.

Everything is drawn on a grid `SAMPLES` times finer than the pixels. A pixel's colour is the mean of its samples, which
makes edges smooth. A pixel belongs to a thing's **whole** mask where the thing covers at least half of its samples, and
to the **visible** mask where at least half of its samples show the thing, being covered by no nearer one; of two
things with exactly half of a pixel each, the nearer has it. Visible masks of one picture are therefore disjoint.
Letters in shapes: n things, h w pixels, y x samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw

from segue.geometry.masks import box_of
from segue.synth.drawings import Paint, Part, all_corners, drawing

SAMPLES = 4
_NOBODY = 255

Colour = tuple[int, int, int]

COLOURS: dict[str, tuple[Colour, Colour]] = {
    "red": ((212, 38, 40), (255, 206, 196)),
    "orange": ((244, 134, 22), (255, 226, 178)),
    "yellow": ((250, 212, 40), (178, 128, 8)),
    "green": ((42, 150, 68), (192, 236, 184)),
    "blue": ((36, 92, 206), (186, 212, 255)),
    "purple": ((128, 52, 178), (226, 196, 246)),
    "pink": ((248, 142, 186), (190, 62, 120)),
    "brown": ((120, 72, 38), (210, 168, 124)),
    "white": ((246, 246, 244), (164, 168, 176)),
    "grey": ((134, 138, 144), (216, 219, 224)),
    "black": ((28, 28, 32), (120, 122, 132)),
}
"""By name: the colour itself, and its kin for stripes, dots, checks and second parts."""

TEXTURES = ("plain", "striped", "dotted", "checked")


@dataclass(frozen=True, slots=True)
class Look:
    """How one thing looks: kind, colour and texture by name, and what chance gave it.

    `shift` is added to every colour channel, so that no two reds need be equal; `grain` is the direction of stripes and
    checks in radians.
    """

    kind: str
    colour: str
    texture: str
    shift: tuple[int, int, int] = (0, 0, 0)
    grain: float = 0.0


@dataclass(frozen=True, slots=True)
class Pose:
    """Where a thing is: its centre in pixels from the top left, its size, and how it is turned.

    `size` is the geometric mean of the unturned drawing's width and height in pixels; `angle` is clockwise in radians;
    `is_mirrored` swaps left and right before turning.
    """

    x: float
    y: float
    size: float
    angle: float = 0.0
    is_mirrored: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn picture and its truth: RGB pixels, visible and whole masks per thing, and boxes of the whole things.

    Boxes are x0 y0 x1 y1 in pixels, right and bottom exclusive, of what the thing covers (at least half of a pixel),
    hidden parts and parts beyond the frame included: they may reach outside of it. `areas` count the pixels likewise.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    visible: Bool[np.ndarray, "n h w"]
    whole: Bool[np.ndarray, "n h w"]
    boxes: Float[np.ndarray, "n 4"]
    areas: Int[np.ndarray, " n"]


def paint(background: UInt8[np.ndarray, "h w 3"], looks: Sequence[Look], poses: Sequence[Pose]) -> Picture:
    """Draw things onto a background, the first furthest back; at most 255 of them."""
    size = background.shape[:2]
    canvas = Image.fromarray(background).resize((size[1] * SAMPLES, size[0] * SAMPLES), Image.Resampling.NEAREST)
    owner = np.full((size[0] * SAMPLES, size[1] * SAMPLES), _NOBODY, dtype=np.uint8)
    whole = np.zeros((len(looks), *size), dtype=bool)
    boxes, areas = np.zeros((len(looks), 4)), np.zeros(len(looks), dtype=np.int64)
    windows = []
    for number, (look, pose) in enumerate(zip(looks, poses, strict=True)):
        stamp = _stamp(look, pose)
        left, top = stamp.corner
        canvas.paste(stamp.colours, (left * SAMPLES, top * SAMPLES), stamp.inside)
        inside, covered = np.asarray(stamp.inside) > 0, _at_least_half(stamp.inside)
        boxes[number], areas[number] = stamp.box(covered), np.count_nonzero(covered)
        window = _Window.of(covered.shape, stamp.corner, size)
        window.on(owner, SAMPLES)[window.within(inside, SAMPLES)] = number
        window.on(whole[number])[...] = window.within(covered)
        windows.append(window)
    return Picture(np.array(canvas.reduce(SAMPLES)), _visible(owner, windows, size), whole, boxes, areas)


def reach(look: Look, pose: Pose) -> tuple[float, float, float, float]:
    """The box that a thing takes in this pose, x0 y0 x1 y1 in pixels, from its outlines alone."""
    corners = _placed(all_corners(look.kind), pose)
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def contrast(first: Colour, second: Colour) -> float:
    """How far apart two colours look, as distance in OKLab: 0 is equal, 0.1 easily told apart, 1 black and white."""
    return float(np.linalg.norm(_oklab(first) - _oklab(second)))


@dataclass(frozen=True, slots=True)
class _Stamp:
    """One thing on a sheet of samples of its own; `corner` is the pixel (x, y) that its top left lies on.

    `inside` is 255 where a sample is covered, else 0.
    """

    corner: tuple[int, int]
    colours: Image.Image
    inside: Image.Image

    def box(self, covered: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, " 4"]:
        """The tight box of its covered pixels; empty, at its corner, if it covers none."""
        tight = box_of(covered)
        left, top = self.corner
        return np.zeros(4) + (left, top, left, top) + (0 if tight is None else tight)


@dataclass(frozen=True, slots=True)
class _Window:
    """The part of a frame under a stamp, as rows and columns of both, in pixels; empty if they do not meet."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    corner: tuple[int, int]

    @classmethod
    def of(cls, stamp: tuple[int, ...], corner: tuple[int, int], frame: tuple[int, int]) -> _Window:
        """The window of a stamp of (height, width) whose top left lies on the pixel `corner` (x, y)."""
        spans = []
        for start, length, room in zip(corner[::-1], stamp, frame, strict=True):
            first = min(max(0, start), room)
            spans.append((first, min(max(first, start + length), room)))
        return cls(spans[0], spans[1], corner)

    def on(self, frame: np.ndarray, scale: int = 1) -> np.ndarray:
        """The window of an array of the frame's size times `scale`."""
        (top, bottom), (left, right) = self.rows, self.columns
        return frame[top * scale : bottom * scale, left * scale : right * scale]

    def within(self, stamp: np.ndarray, scale: int = 1) -> np.ndarray:
        """The window of an array of the stamp's size times `scale`."""
        (top, bottom), (left, right), (x, y) = self.rows, self.columns, self.corner
        if top == bottom or left == right:
            return stamp[:0, :0].reshape(max(0, bottom - top) * scale, max(0, right - left) * scale)
        return stamp[(top - y) * scale : (bottom - y) * scale, (left - x) * scale : (right - x) * scale]


def _stamp(look: Look, pose: Pose) -> _Stamp:
    left, top, right, bottom = reach(look, pose)
    x0, y0 = int(np.floor(left)) - 1, int(np.floor(top)) - 1
    width, height = int(np.ceil(right)) + 1 - x0, int(np.ceil(bottom)) + 1 - y0
    sheet = Image.new("RGB", (width * SAMPLES, height * SAMPLES))
    inside = Image.new("L", sheet.size)
    ink, body = ImageDraw.Draw(sheet), _body(look, pose, (x0, y0), sheet.size)
    for part in drawing(look.kind):
        corners = [tuple(corner) for corner in (_placed(part.outline, pose) - (x0, y0)) * SAMPLES]
        ImageDraw.Draw(inside).polygon(corners, fill=0 if part.paint == "hole" else 255)
        if part.paint == "body":
            stencil = Image.new("1", sheet.size)
            ImageDraw.Draw(stencil).polygon(corners, fill=1)
            sheet.paste(body, (0, 0), stencil)
        elif part.paint != "hole":
            ink.polygon(corners, fill=_flat(part.paint, look))
        _outline(ink, corners, look, part, pose)
    return _Stamp((x0, y0), _lit(sheet), inside)


def _outline(ink: ImageDraw.ImageDraw, corners: list[tuple[float, ...]], look: Look, part: Part, pose: Pose) -> None:
    width = max(SAMPLES, round(0.035 * pose.size * SAMPLES))
    colour = _flat("shade" if part.paint in ("body", "second", "hole") else part.paint, look)
    if not isinstance(part.paint, str):
        colour = _scaled(colour, 0.7)
    ink.line([*corners, *corners[:2]], fill=colour, width=width, joint="curve")


def _flat(paint: Paint, look: Look) -> Colour:
    """The one colour of a paint on a thing, `body` without its texture."""
    if not isinstance(paint, str):
        return paint
    main, second = (_shifted(colour, look.shift) for colour in COLOURS[look.colour])
    if paint == "shade":
        # what is nearly black has a paler outline instead of a darker one
        return _scaled(main, 0.62) if max(main) > 60 else _shifted(main, (48, 48, 52))
    return second if paint == "second" else main


def _body(look: Look, pose: Pose, origin: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """A sheet of the thing's texture, which stays with the thing when it moves, turns and grows."""
    main, second = _flat("body", look), _flat("second", look)
    sheet = Image.new("RGB", size, main)
    if look.texture == "plain":
        return sheet
    x = ((np.arange(size[0], dtype=np.float32) + 0.5) / SAMPLES + origin[0] - pose.x) * (2 / pose.size)
    y = ((np.arange(size[1], dtype=np.float32) + 0.5) / SAMPLES + origin[1] - pose.y) * (2 / pose.size)
    turn = pose.angle + look.grain
    cosine, sine = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    along, across = cosine * x[None, :] + sine * y[:, None], cosine * y[:, None] - sine * x[None, :]
    sheet.paste(second, (0, 0), Image.fromarray(_pattern(look.texture, along, across, pixel=2 / pose.size)))
    return sheet


def _pattern(
    texture: str, along: Float[np.ndarray, "y x"], across: Float[np.ndarray, "y x"], *, pixel: float
) -> Bool[np.ndarray, "y x"]:
    """Where the second colour goes, in unit coordinates; `pixel` is a pixel's width in them, for the least period."""
    if texture == "striped":
        period = max(0.5, 5 * pixel)
        striped: np.ndarray = along % period < 0.44 * period
        return striped
    if texture == "checked":
        period = max(0.84, 8 * pixel)
        checked: np.ndarray = (along % period < period / 2) ^ (across % period < period / 2)
        return checked
    period = max(0.54, 6 * pixel)
    dots: np.ndarray = np.hypot(along % period - period / 2, across % period - period / 2) < 0.31 * period
    return dots


def _placed(outline: Float[np.ndarray, "k 2"], pose: Pose) -> Float[np.ndarray, "k 2"]:
    """An outline in pixels."""
    flipped = outline * (-1, 1) if pose.is_mirrored else outline
    cosine, sine = np.cos(pose.angle), np.sin(pose.angle)
    placed: np.ndarray = flipped @ np.array([[cosine, sine], [-sine, cosine]]) * (pose.size / 2) + (pose.x, pose.y)
    return placed


def _lit(colours: Image.Image) -> Image.Image:
    """A little light from above."""
    light = np.linspace(1.07, 0.9, colours.height, dtype=np.float32)[:, None, None]
    return Image.fromarray(np.minimum(np.asarray(colours) * light, 255).astype(np.uint8))


def _at_least_half(inside: Image.Image) -> Bool[np.ndarray, "h w"]:
    """The pixels of which at least half of the samples are 255, the others being 0."""
    # the mean of 8 of 16 samples is 127.5, which rounds up
    half: np.ndarray = np.asarray(inside.reduce(SAMPLES)) >= 128
    return half


def _visible(
    owner: UInt8[np.ndarray, "y x"], windows: Sequence[_Window], size: tuple[int, int]
) -> Bool[np.ndarray, "n h w"]:
    """The visible masks, from the number of the nearest thing at every sample."""
    visible = np.zeros((len(windows), *size), dtype=bool)
    free = np.ones(size, dtype=bool)
    for number, window in reversed(list(enumerate(windows))):
        samples = window.on(owner, SAMPLES)
        if samples.size:
            shown = _at_least_half(Image.fromarray(np.where(samples == number, 255, 0).astype(np.uint8)))
            window.on(visible[number])[...] = shown & window.on(free)
            window.on(free)[...] &= ~shown
    return visible


def _shifted(colour: Colour, by: tuple[int, int, int]) -> Colour:
    red, green, blue = (min(255, max(0, channel + change)) for channel, change in zip(colour, by, strict=True))
    return red, green, blue


def _scaled(colour: Colour, factor: float) -> Colour:
    red, green, blue = (round(channel * factor) for channel in colour)
    return red, green, blue


@lru_cache(maxsize=4096)
def _oklab(colour: Colour) -> Float[np.ndarray, " 3"]:
    """A colour in OKLab. Source: B. Ottosson, "A perceptual color space for image processing" (2020)."""
    channels = np.array(colour) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(_TO_CONES @ linear)
    lab: np.ndarray = _TO_LAB @ cones
    return lab


_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
