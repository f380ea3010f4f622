"""Regions onto pixels: coloured masks with outlines and labels, for people to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import ceil
from statistics import NormalDist
from typing import cast
from unicodedata import normalize

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from segue.errors import DataError

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

COLOURS: tuple[Colour, ...] = (
    (0x14, 0x90, 0xFF),
    (0xFF, 0x92, 0x2E),
    (0xFF, 0x17, 0x98),
    (0xE6, 0xF0, 0x00),
    (0x1F, 0xF0, 0xEE),
    (0x6A, 0x00, 0xE8),
    (0xA4, 0x48, 0x1A),
)
"""Blue, orange, pink, lime, aqua, violet, brown: at least 0.1 apart in OKLab, also as people with protanopia,
deuteranopia or tritanopia see them."""
_FILL = 0.45
"""How much of a pixel is colour where there is an object."""
_ON_TOP = 215
"""How much of that colour, of 255, is the smaller object's where two overlap."""
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def colour_of(number: int) -> Colour:
    """The RGB colour of object `number`, from 0; always the same, and new ones up to 21 objects.

    The 8th to 14th are paler and the 15th to 21st darker kin of the first seven.
    """
    base = COLOURS[number % len(COLOURS)]
    towards, share = ((_BLACK, 0.0), (_WHITE, 0.55), (_BLACK, 0.45))[number // len(COLOURS) % 3]
    red, green, blue = (round(c + (t - c) * share) for c, t in zip(base, towards, strict=True))
    return red, green, blue


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Bool[np.ndarray, "n h w"],
    labels: Sequence[str],
    colours: Sequence[Colour] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """A copy of the image with every object filled, outlined and named; object i has the colour `colour_of(i)`, or its
    own of `colours`.

    Where objects overlap, their colours mix, smaller objects counting more. An object without pixels is not drawn,
    and one with an empty label has none. Labels stand above their object where there is room, inside the image always,
    and off one another where possible; one that is too long for the image is cut, and an image too small for letters
    has none. Pillow's built-in font knows no Chinese, among others: characters it lacks are left out of a label, and
    a label of nothing else reads "object 3".

    Raises: DataError, if there is not one label per mask, or masks and image differ in size.
    """
    if len(labels) != len(masks):
        raise DataError(f"{len(masks)} masks have {len(labels)} labels; expected one each, empty for none")
    if masks.shape[1:] != image.shape[:2]:
        raise DataError(f"masks of {masks.shape[1:]} (height, width) do not fit an image of {image.shape[:2]}")
    shown = [(number, box) for number, mask in enumerate(masks) if (box := _bounds(mask))]
    picture = Image.fromarray(image).copy()
    colours = colours or [colour_of(number) for number in range(len(masks))]
    _fill(picture, masks, shown, colours)
    for number, box in shown:
        _outline(picture, masks[number], box, colours[number])
    _name(picture, masks, shown, list(zip(labels, colours, strict=True)))
    return np.array(picture)


def outlines(corners: Sequence[Float[np.ndarray, "_ 2"]], size: tuple[int, int]) -> Bool[np.ndarray, "n h w"]:
    """The lines around boxes and quads, given by their corners in pixels x y, as masks of (height, width) `size`.

    Nothing is drawn of one without corners.
    """
    width = max(2, round(0.008 * min(size)))
    masks = np.zeros((len(corners), *size), bool)
    for mask, points in zip(masks, corners, strict=True):
        sheet = Image.new("1", size[::-1])
        inside = [tuple(point) for point in np.clip(points, 0, np.array(size[::-1]) - 1).tolist()]
        if not inside:
            continue
        ImageDraw.Draw(sheet).line([*inside, inside[0]], fill=1, width=width)
        mask[...] = np.asarray(sheet)
    return masks


def side_by_side(
    image: UInt8[np.ndarray, "h w 3"], masks: Mapping[str, Bool[np.ndarray, "n h w"]], legend: Sequence[str]
) -> UInt8[np.ndarray, "y x 3"]:
    """The image once for each title of `masks`, with these masks on it, and below a line for each object.

    Object i has the colour `colour_of(i)` in every picture and a swatch of it before line i of the legend. A line that
    is too long is cut.

    Raises: DataError, as `overlay` does.
    """
    shown = [overlay(image, mine, [""] * len(legend)) for mine in masks.values()]
    height, width = image.shape[:2]
    size = max(13, round(0.04 * min(height, width)))
    font, line, gap = _font(size), round(1.6 * size), round(0.6 * size)
    whole = (len(shown) * (width + gap) + gap, 2 * gap + line + height + line * len(legend))
    sheet = Image.new("RGB", whole, _WHITE)
    ink = ImageDraw.Draw(sheet)
    for number, (title, picture) in enumerate(zip(masks, shown, strict=True)):
        left = gap + number * (width + gap)
        ink.text((left, line // 2), title, font=font, fill=_BLACK, anchor="lm")
        sheet.paste(Image.fromarray(picture), (left, line))
    for number, text in enumerate(legend):
        middle = line + height + gap + line // 2 + number * line
        ink.rectangle((gap, middle - size // 2, gap + size, middle + size // 2), colour_of(number), _BLACK)
        text = _readable(text, number, font, whole[0] - 3 * gap - size)
        ink.text((2 * gap + size, middle), text, font=font, fill=_BLACK, anchor="lm")
    return np.array(sheet)


def _name(
    picture: Image.Image,
    masks: Bool[np.ndarray, "n h w"],
    shown: Sequence[tuple[int, Rectangle]],
    labels: Sequence[tuple[str, Colour]],
) -> None:
    """Draw the labels that fit the picture, each in its colour."""
    size = max(11, round(0.024 * (picture.width * picture.height) ** 0.5))
    font, height, padding = _font(size), round(1.5 * size), round(0.5 * size)
    if height > picture.height:
        return
    taken: list[Rectangle] = []
    for number, box in shown:
        label, colour = labels[number]
        text = _readable(label, number, font, picture.width - 2 * padding)
        if text:
            width = min(picture.width, ceil(font.getlength(text)) + 2 * padding)
            taken.append(_place((width, height), _anchor(masks[number], box), picture.size, taken))
            _draw_label(picture, text, taken[-1], font=font, colour=colour)


def _bounds(mask: Bool[np.ndarray, "h w"]) -> Rectangle | None:
    """Left, top, right, bottom (exclusive) of a mask's pixels; None without any."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _fill(
    picture: Image.Image,
    masks: Bool[np.ndarray, "n h w"],
    shown: Sequence[tuple[int, Rectangle]],
    colours: Sequence[Colour],
) -> None:
    """Lay the objects' colours over the picture, once, however many objects a pixel has.

    From large to small, so that a small object on a large one keeps most of its colour.
    """
    tint = picture.copy()
    covered = np.zeros(masks.shape[1:], dtype=bool)
    for number, (left, top, right, bottom) in sorted(shown, key=lambda item: -np.count_nonzero(masks[item[0]])):
        here = np.s_[top:bottom, left:right]
        inside = masks[number][here]
        strength = np.where(covered[here], np.uint8(_ON_TOP), np.uint8(255)) * inside
        tint.paste(colours[number], (left, top), Image.fromarray(strength))
        covered[here] |= inside
    picture.paste(Image.blend(picture, tint, _FILL), (0, 0), Image.fromarray(covered.astype(np.uint8) * 255))


def _outline(picture: Image.Image, mask: Bool[np.ndarray, "h w"], box: Rectangle, colour: Colour) -> None:
    """A smooth line along the edge of a mask, with a dark one under it so that it shows on any background."""
    width = max(2.0, 0.003 * min(picture.size))
    margin = int(3 * width) + 2
    left, top = max(0, box[0] - margin), max(0, box[1] - margin)
    crop = np.ascontiguousarray(mask[top : box[3] + margin, left : box[2] + margin])
    softness = max(0.8, 0.6 * width)
    soft = Image.fromarray(crop.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(softness))
    for ink, half, strength in ((_BLACK, width / 2 + max(0.75, width / 4), 0.5), (colour, width / 2, 1.0)):
        picture.paste(ink, (left, top), soft.point(_band(softness, half, strength)))


@lru_cache(maxsize=64)
def _band(softness: float, half: float, strength: float) -> tuple[int, ...]:
    """Opacity, 0 to 255, of a line `2 * half` pixels wide for each grey of a blurred edge.

    A straight edge blurred by a Gaussian has the grey of the normal distribution, so a grey tells the distance to the
    edge, and the distance the opacity: full inside the line, fading over one pixel at its rim.
    """
    distances = [softness * NormalDist().inv_cdf((grey + 0.5) / 256) for grey in range(256)]
    return tuple(round(255 * strength * min(1.0, max(0.0, half + 0.5 - abs(distance)))) for distance in distances)


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's wheels carry FreeType, without which this would be a bitmap font of one size.
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))


def _readable(label: str, number: int, font: ImageFont.FreeTypeFont, width: int) -> str:
    """What of a label the font can write, in one line of at most `width` pixels; empty if that is nothing."""
    words = " ".join(normalize("NFKD", label).split())  # taken apart, "é" becomes an "e" and an accent to leave out
    if not words:
        return ""
    unknown = bytes(font.getmask("\uffff"))
    known = "".join(letter for letter in words if letter == " " or bytes(font.getmask(letter)) != unknown)
    text = " ".join(known.split()) or f"object {number + 1}"
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1].rstrip()
    return text and text + "..."


def _anchor(mask: Bool[np.ndarray, "h w"], box: Rectangle) -> Rectangle:
    """What a label belongs to: the object's box, but only as wide as the widest piece of its upper fifth."""
    left, top, right, bottom = box
    columns = np.flatnonzero(mask[top : top + max(1, (bottom - top) // 5), left:right].any(axis=0))
    piece = max(np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1), key=len)
    return left + int(piece[0]), top, left + int(piece[-1]) + 1, bottom


def _place(size: tuple[int, int], anchor: Rectangle, frame: tuple[int, int], taken: Sequence[Rectangle]) -> Rectangle:
    """Where in the frame a label of this (width, height) goes: the free place nearest to right above its object.

    Tried are above, inside at the top, below, and directly above and below the labels that are there already. If
    none is free, it is the one that covers least of them.
    """
    (width, height), gap = size, max(2, size[1] // 6)
    left = (anchor[0] + anchor[2] - width) // 2
    above = anchor[1] - gap - height
    tops = [above, anchor[1] + gap, anchor[3] + gap]
    tops += [top for other in taken for top in (other[1] - height - 1, other[3] + 1)]
    left = min(max(left, 0), frame[0] - width)
    rooms = [min(max(top, 0), frame[1] - height) for top in tops]
    places = [(left, top, left + width, top + height) for top in rooms]
    return min(places, key=lambda place: (sum(_shared(place, other) for other in taken), abs(place[1] - above)))


def _shared(one: Rectangle, other: Rectangle) -> int:
    """The area in both rectangles, in pixels."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height)


def _draw_label(
    picture: Image.Image, text: str, place: Rectangle, *, font: ImageFont.FreeTypeFont, colour: Colour
) -> None:
    """A rounded box in the object's colour with a dark rim, and the text in black or white, whichever reads better."""
    left, top, right, bottom = place
    width, height = right - left, bottom - top
    for ink, inset in ((tuple(c // 3 for c in colour), 0), (colour, max(1, height // 20))):
        # Drawn four times as large and shrunk, because Pillow draws round corners with steps.
        shape = Image.new("L", (4 * width, 4 * height))
        box = (4 * inset, 4 * inset, 4 * (width - inset) - 1, 4 * (height - inset) - 1)
        ImageDraw.Draw(shape).rounded_rectangle(box, radius=height, fill=255)
        picture.paste(ink, (left, top), shape.reduce(4))
    red, green, blue = ((channel / 255) ** 2.2 for channel in colour)
    is_bright = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18
    centre = ((left + right) / 2, (top + bottom) / 2)
    ImageDraw.Draw(picture).text(centre, text, font=font, fill=_BLACK if is_bright else _WHITE, anchor="mm")
