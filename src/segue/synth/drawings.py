"""What the things in a scene look like: outlines in unit coordinates, x to the right and y down.

Every drawing is scaled and shifted so that its box is centred on the origin and the geometric mean of the box's sides
is 2. Things of one size then take about the same room, whatever they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Float

Paint = Literal["body", "second", "shade", "hole"] | tuple[int, int, int]
Outline = Float[np.ndarray, "k 2"]


@dataclass(frozen=True, slots=True)
class Part:
    """One closed outline and how it is filled; later parts cover earlier ones.

    `body` has the thing's colour and texture, `second` the paler or darker kin of its colour, `shade` its dark one;
    a colour is RGB and the same on every thing of the kind; `hole` cuts through to what lies behind.
    """

    outline: Outline
    paint: Paint


SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon")
PICTURES = ("house", "tree", "car", "fish", "boat", "flower", "cup", "butterfly")
KINDS = SHAPES + PICTURES

_WOOD, _GLASS, _RUBBER, _METAL = (124, 84, 52), (206, 232, 244), (44, 44, 50), (186, 190, 198)
_LEAF, _CREAM, _DARK = (74, 138, 66), (252, 246, 224), (40, 38, 44)


@cache
def drawing(kind: str) -> tuple[Part, ...]:
    """The parts of a kind of thing, from the back to the front."""
    parts = _DRAWINGS[kind]()
    corners = np.concatenate([part.outline for part in parts])
    low, high = corners.min(axis=0), corners.max(axis=0)
    scale = 2 / np.sqrt(np.prod(high - low))
    return tuple(Part((part.outline - (low + high) / 2) * scale, part.paint) for part in parts)


@cache
def all_corners(kind: str) -> Outline:
    """The corners of all parts of a kind of thing."""
    return np.concatenate([part.outline for part in drawing(kind)])


def _polygon(*corners: tuple[float, float]) -> Outline:
    return np.array(corners, dtype=np.float64)


def _ellipse(x: float, y: float, across: float, down: float, *, tilt: float = 0.0) -> Outline:
    """An ellipse with these half axes, turned by `tilt` radians."""
    turn = np.linspace(0, 2 * np.pi, 56, endpoint=False)
    flat = np.stack([across * np.cos(turn), down * np.sin(turn)], axis=1)
    cosine, sine = np.cos(tilt), np.sin(tilt)
    turned: Outline = flat @ np.array([[cosine, sine], [-sine, cosine]]) + (x, y)
    return turned


def _rectangle(left: float, top: float, right: float, bottom: float) -> Outline:
    return _polygon((left, top), (right, top), (right, bottom), (left, bottom))


def _circle() -> Sequence[Part]:
    return [Part(_ellipse(0.0, 0.0, 1.0, 1.0), "body")]


def _square() -> Sequence[Part]:
    return [Part(_rectangle(-1.0, -1.0, 1.0, 1.0), "body")]


def _triangle() -> Sequence[Part]:
    return [Part(_polygon((0.0, -0.95), (1.05, 0.9), (-1.05, 0.9)), "body")]


def _star() -> Sequence[Part]:
    turn = -np.pi / 2 + np.arange(10) * np.pi / 5
    reach = np.where(np.arange(10) % 2 == 0, 1.0, 0.46)
    return [Part(np.stack([reach * np.cos(turn), reach * np.sin(turn)], axis=1), "body")]


def _heart() -> Sequence[Part]:
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    across = 16 * np.sin(turn) ** 3
    up = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
    return [Part(np.stack([across, -up], axis=1), "body")]


def _cross() -> Sequence[Part]:
    arm = 0.36
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    corners: list[tuple[float, float]] = []
    for _ in range(4):
        corners += quarter
        quarter = [(-y, x) for x, y in quarter]
    return [Part(_polygon(*corners), "body")]


def _ring() -> Sequence[Part]:
    return [Part(_ellipse(0.0, 0.0, 1.0, 1.0), "body"), Part(_ellipse(0.0, 0.0, 0.54, 0.54), "hole")]


def _moon() -> Sequence[Part]:
    outer = np.linspace(np.pi / 3, 5 * np.pi / 3, 48)
    back = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    # the inner edge is an arc from tip to tip, around a centre to the right of the outer one's
    centre, tip = 0.85, back[0]
    reach, half = float(np.hypot(centre - tip[0], tip[1])), float(np.arctan2(tip[1], centre - tip[0]))
    inner = np.linspace(np.pi + half, np.pi - half, 48)[1:-1]
    front = np.stack([centre + reach * np.cos(inner), reach * np.sin(inner)], axis=1)
    return [Part(np.concatenate([back, front]), "body")]


def _house() -> Sequence[Part]:
    return [
        Part(_rectangle(0.42, -0.92, 0.64, -0.3), "shade"),
        Part(_rectangle(-0.82, -0.15, 0.82, 1.0), "body"),
        Part(_polygon((0.0, -1.0), (1.05, -0.1), (-1.05, -0.1)), "shade"),
        Part(_rectangle(-0.2, 0.36, 0.2, 1.0), _WOOD),
        Part(_rectangle(-0.66, 0.12, -0.34, 0.46), _GLASS),
        Part(_rectangle(0.34, 0.12, 0.66, 0.46), _GLASS),
    ]


def _tree() -> Sequence[Part]:
    return [
        Part(_polygon((-0.15, 0.1), (0.15, 0.1), (0.22, 1.05), (-0.22, 1.05)), _WOOD),
        Part(_ellipse(-0.42, 0.02, 0.48, 0.44), "body"),
        Part(_ellipse(0.42, 0.02, 0.48, 0.44), "body"),
        Part(_ellipse(0.0, -0.42, 0.62, 0.62), "body"),
    ]


def _car() -> Sequence[Part]:
    wheels = [
        part
        for x in (-0.62, 0.62)
        for part in (Part(_ellipse(x, 0.42, 0.27, 0.27), _RUBBER), Part(_ellipse(x, 0.42, 0.12, 0.12), _METAL))
    ]
    cabin = _polygon((-0.72, -0.1), (-0.5, -0.62), (0.3, -0.62), (0.66, -0.1))
    rear, front = (-0.54, -0.1), (-0.4, -0.48)
    return [
        Part(cabin, "body"),
        Part(_polygon(rear, front, (-0.12, -0.48), (-0.12, -0.1)), _GLASS),
        Part(_polygon((-0.0, -0.1), (-0.0, -0.48), (0.24, -0.48), (0.48, -0.1)), _GLASS),
        Part(_polygon((-1.1, -0.02), (-0.98, -0.12), (0.8, -0.12), (1.1, 0.06), (1.1, 0.42), (-1.1, 0.42)), "body"),
        Part(_ellipse(1.0, 0.1, 0.09, 0.07), _CREAM),
        *wheels,
    ]


def _fish() -> Sequence[Part]:
    return [
        Part(_polygon((-0.5, 0.0), (-1.15, -0.5), (-0.98, 0.0), (-1.15, 0.5)), "second"),
        Part(_polygon((-0.25, -0.45), (0.1, -0.85), (0.4, -0.42)), "second"),
        Part(_ellipse(0.12, 0.0, 0.88, 0.58), "body"),
        Part(_ellipse(0.6, -0.14, 0.13, 0.13), _CREAM),
        Part(_ellipse(0.63, -0.14, 0.06, 0.06), _DARK),
    ]


def _boat() -> Sequence[Part]:
    return [
        Part(_rectangle(-0.06, -1.0, 0.06, 0.4), _WOOD),
        Part(_polygon((0.14, -0.95), (0.82, 0.02), (0.14, 0.02)), _CREAM),
        Part(_polygon((-0.14, -0.65), (-0.14, 0.02), (-0.62, 0.02)), _CREAM),
        Part(_polygon((-1.1, 0.14), (1.1, 0.14), (0.74, 0.95), (-0.74, 0.95)), "body"),
    ]


def _flower() -> Sequence[Part]:
    turns = -np.pi / 2 + np.arange(6) * np.pi / 3
    petals = [
        Part(_ellipse(0.5 * np.cos(turn), -0.3 + 0.5 * np.sin(turn), 0.33, 0.25, tilt=turn), "body") for turn in turns
    ]
    return [
        Part(_rectangle(-0.07, 0.2, 0.07, 1.25), _LEAF),
        Part(_ellipse(0.28, 0.92, 0.3, 0.13, tilt=-0.6), _LEAF),
        *petals,
        Part(_ellipse(0.0, -0.3, 0.27, 0.27), "second"),
    ]


def _cup() -> Sequence[Part]:
    return [
        Part(_ellipse(0.72, 0.02, 0.42, 0.4), "body"),
        Part(_ellipse(0.72, 0.02, 0.22, 0.2), "hole"),
        Part(_polygon((-0.8, -0.7), (0.7, -0.7), (0.52, 0.82), (-0.62, 0.82)), "body"),
        Part(_ellipse(-0.05, -0.7, 0.75, 0.2), "shade"),
        Part(_ellipse(-0.05, -0.66, 0.62, 0.13), _WOOD),
    ]


def _butterfly() -> Sequence[Part]:
    wings = [
        Part(_ellipse(side * x, y, across, down, tilt=side * tilt), "body")
        for side in (-1, 1)
        for x, y, across, down, tilt in ((0.58, -0.36, 0.58, 0.4, -0.5), (0.46, 0.42, 0.44, 0.34, 0.6))
    ]
    return [*wings, Part(_ellipse(0.0, 0.02, 0.12, 0.78), _DARK)]


_DRAWINGS = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "moon": _moon,
    "house": _house,
    "tree": _tree,
    "car": _car,
    "fish": _fish,
    "boat": _boat,
    "flower": _flower,
    "cup": _cup,
    "butterfly": _butterfly,
}
