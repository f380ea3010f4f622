"""Masks as polygons, for tools that take nothing else, and how far a polygon is from the mask that it stands for.

Borders run along the edges of pixels: corners are whole numbers x y, from 0 to the width and height. Parts of a mask
that touch at a corner alone are parts of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as coco

TOLERANCE = 0.5
"""Pixels by which a polygon may leave the line that it stands for."""
_STEP = 3
"""Pixels: a corner between edges of this length or more is a corner of the thing, others are steps of a slope."""
_EAST, _SOUTH, _WEST, _NORTH = range(4)
_MOVES = ((1, 0), (0, 1), (-1, 0), (0, -1))

Corner = tuple[int, int]


def borders(mask: Bool[np.ndarray, "h w"]) -> list[Float[np.ndarray, "_ 2"]]:
    """Every border of a mask, exactly: one around a part runs clockwise, as one sees it, one around a hole the other
    way.
    """
    leaving = _edges(mask)
    starts = [place for place, headings in leaving.items() if _EAST in headings]
    return [_walk(start, leaving) for start in starts if _EAST in leaving[start]]


def parts(mask: Bool[np.ndarray, "h w"]) -> list[Bool[np.ndarray, "h w"]]:
    """The parts of a mask that hang together by the sides of pixels, the smallest first."""
    found, left = [], mask
    for line in sorted(filter(_is_outer, borders(mask)), key=signed_area):
        inside = left & _filled([line], mask.shape)  # a smaller part that lies in a hole is taken already
        found.append(inside)
        left = left & ~inside
    return found


def polygons(mask: Bool[np.ndarray, "h w"]) -> list[Float[np.ndarray, "_ 2"]]:
    """A polygon around each part of a mask, the largest first; holes are filled."""
    around = sorted(filter(_is_outer, borders(mask)), key=signed_area, reverse=True)
    return [simplified(line) for line in around]


def one_polygon(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "_ 2"]:
    """One polygon for the whole of a mask that is not empty: its parts and holes hang together by lines without width.

    Source: the way in which Ultralytics' converter joins the segments of one object.
    """
    whole, *others = [simplified(line) for line in sorted(borders(mask), key=signed_area, reverse=True)]
    for line in others:
        distances = ((whole[:, None] - line[None]) ** 2).sum(-1)
        here, there = np.unravel_index(int(distances.argmin()), distances.shape)
        turned = np.roll(line, -int(there), axis=0)
        whole = np.concatenate([whole[: here + 1], turned, turned[:1], whole[here:]])
    return whole


def signed_area(polygon: Float[np.ndarray, "_ 2"]) -> float:
    """Its area in pixels, below 0 if it runs counter-clockwise, as one sees it."""
    x, y = polygon.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def area_error(found: Sequence[Float[np.ndarray, "_ 2"]], mask: Bool[np.ndarray, "h w"]) -> float:
    """The pixels that differ between the union of polygons and a mask that is not empty, as a share of the mask's."""
    return float(np.count_nonzero(_filled(found, mask.shape) ^ mask) / np.count_nonzero(mask))


def simplified(border: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "_ 2"]:
    """A border with few corners: steps become slopes through the middles of their edges, and what lies within
    `TOLERANCE` of a line is left out.

    Source: Ramer 1972, Douglas and Peucker 1973.
    """
    line = _without_steps(border)
    far = int(((line - line[0]) ** 2).sum(1).argmax())
    closed = np.concatenate([line, line[:1]])
    kept, parts = {0, far}, [(0, far), (far, len(line))]
    while parts:
        start, stop = parts.pop()
        if stop - start < 2:
            continue
        distances = _distances(closed[start + 1 : stop], closed[start], closed[stop])
        if distances.max() > TOLERANCE:
            middle = start + 1 + int(distances.argmax())
            kept.add(middle)
            parts += [(start, middle), (middle, stop)]
    corners = line[sorted(kept)]
    return corners if len(corners) > 2 else border


def _without_steps(border: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "_ 2"]:
    """The middle of every edge, and before it the corner that begins it where that is none of a step."""
    following = np.roll(border, -1, axis=0)
    lengths = np.abs(following - border).sum(1)
    is_corner = np.minimum(lengths, np.roll(lengths, 1)) >= _STEP
    pairs = np.stack([border, (border + following) / 2], axis=1)
    chosen: Float[np.ndarray, "_ 2"] = pairs[np.stack([is_corner, np.ones_like(is_corner)], axis=1)]
    return chosen


def _filled(found: Sequence[Float[np.ndarray, "_ 2"]], size: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    """The union of polygons as a mask."""
    counts = coco.merge(coco.frPyObjects([one.ravel().tolist() for one in found], *size))
    filled: Bool[np.ndarray, "h w"] = coco.decode(counts).astype(bool)
    return filled


def _is_outer(border: Float[np.ndarray, "_ 2"]) -> bool:
    return signed_area(border) > 0


def _edges(mask: Bool[np.ndarray, "h w"]) -> dict[Corner, set[int]]:
    """Where borders leave each corner to, the mask always on their right."""
    padded = np.pad(mask, 1).astype(np.int8)
    down, across = np.diff(padded, axis=0)[:, 1:-1], np.diff(padded, axis=1)[1:-1]
    leaving: dict[Corner, set[int]] = {}
    for heading, edges, begin in (
        (_EAST, down > 0, (0, 0)),
        (_WEST, down < 0, (1, 0)),
        (_NORTH, across > 0, (0, 1)),
        (_SOUTH, across < 0, (0, 0)),
    ):
        for y, x in np.argwhere(edges).tolist():
            leaving.setdefault((x + begin[0], y + begin[1]), set()).add(heading)
    return leaving


def _walk(start: Corner, leaving: dict[Corner, set[int]]) -> Float[np.ndarray, "_ 2"]:
    """The border that leaves a corner to the east; its edges are taken out of `leaving`."""
    corners, place, heading = [start], start, _EAST
    while True:
        place = (place[0] + _MOVES[heading][0], place[1] + _MOVES[heading][1])
        # to the right first: where two parts touch at a corner, each goes around itself
        turn = next(turn % 4 for turn in (heading + 1, heading, heading - 1) if turn % 4 in leaving[place])
        leaving[place].remove(turn)
        if (place, turn) == (start, _EAST):
            return np.array(corners, np.float64)
        if turn != heading:
            corners.append(place)
            heading = turn


def _distances(
    points: Float[np.ndarray, "n 2"], start: Float[np.ndarray, " 2"], stop: Float[np.ndarray, " 2"]
) -> Float[np.ndarray, " n"]:
    """How far points are from the line between two others, its ends included."""
    along, away = stop - start, points - start
    length = float(along @ along)
    share = np.clip(away @ along / length, 0, 1) if length else np.zeros(len(points))
    distances: Float[np.ndarray, " n"] = np.sqrt(((away - share[:, None] * along) ** 2).sum(1))
    return distances
