"""Clips: things that move, turn, grow, come in, leave, and pass behind one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from segue.errors import ConfigError
from segue.synth.backgrounds import choose, paint_background
from segue.synth.meaning import Thing
from segue.synth.painting import Look, Picture, Pose, paint, reach
from segue.synth.scenes import (
    SIZES,
    Box,
    Scene,
    Split,
    assemble,
    checked_size,
    draw_size,
    draw_things,
    generator,
    rest,
    shared,
    somewhere,
)

_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_PLANS = {"still": 0.28, "move": 0.4, "leave": 0.09, "enter": 0.09, "spin": 0.06, "grow": 0.04, "shrink": 0.04}
_FACING = ("car", "fish")  # drawn facing right; they move the way they face
_ROUND = ("circle", "ring")  # nobody sees them turn
_SOLID = ("circle", "square", "house", "heart", "tree")  # large enough all over to hide something
_ATTEMPTS = 200


@dataclass(frozen=True, slots=True)
class _Path:
    """From where to where a thing goes, evenly over the clip."""

    start: Pose
    stop: Pose

    def poses(self, frames: int) -> list[Pose]:
        """One pose per frame."""
        return [self._at(number / (frames - 1)) for number in range(frames)]

    def _at(self, share: float) -> Pose:
        a, b = self.start, self.stop
        return Pose(
            a.x + (b.x - a.x) * share,
            a.y + (b.y - a.y) * share,
            a.size * (b.size / a.size) ** share,
            a.angle + (b.angle - a.angle) * share,
            a.is_mirrored,
        )


def clip(
    seed: int,
    index: int,
    *,
    split: Split = "train",
    size: tuple[int, int] | None = None,
    frames: int = 8,
    things: tuple[int, int] = (2, 5),
) -> Scene:
    """Clip number `index` of a seed: `frames` frames (4 to 256) of one scene in even motion. Else as `scene`.

    Something moves in every clip. In about a third of them a thing passes behind another and is hidden for a while.

    Raises: ConfigError, for numbers out of range.
    """
    rng = generator("clip", split, seed, index)
    frame = checked_size(size or draw_size(rng))
    if not 4 <= frames <= 256 or not 2 <= things[0] <= things[1] <= 8:
        raise ConfigError(
            f"a clip of {frames} frames and {things[0]} to {things[1]} things cannot be drawn; "
            "expected 4 to 256 frames and 2 to 8 things"
        )
    for _ in range(_ATTEMPTS):
        background = choose(rng)
        named, looks, sizes = draw_things(rng, int(rng.integers(things[0], things[1] + 1)), background, frame)
        hides = rng.uniform() < 0.35
        if hides:
            _cast(named, looks, sizes, frame, rng)
        paths = _routes(looks, sizes, frame, rng, hides=hides)
        poses = [path.poses(frames) for path in paths]
        backdrop = paint_background(background, frame, rng)
        pictures = [paint(backdrop, looks, [path[number] for path in poses]) for number in range(frames)]
        if _is_watchable(pictures) and (not hides or _is_hidden_once(pictures)):
            group = f"synth-{split}-{seed}-{index}-clip"
            return assemble(group, background, named, poses=poses, pictures=pictures, rng=rng)
    raise RuntimeError(f"no clip of {things} things in {frame} pixels after {_ATTEMPTS} attempts")


def _cast(
    named: list[Thing], looks: list[Look], sizes: list[float], frame: tuple[int, int], rng: np.random.Generator
) -> None:
    """Make the furthest thing small and the nearest one large and solid, so that it can hide the other."""
    roles = ((0, "small", named[0].kind), (-1, "large", str(rng.choice(_SOLID))))
    for number, size, kind in roles:
        named[number] = replace(named[number], size=size, kind=kind)
        looks[number] = replace(looks[number], kind=kind)
        sizes[number] = float(rng.uniform(*SIZES[size])) * min(frame)


def _routes(
    looks: Sequence[Look], sizes: Sequence[float], frame: tuple[int, int], rng: np.random.Generator, *, hides: bool
) -> list[_Path]:
    """A path for every thing; with `hides` the first goes behind the last. The least crowded of some is taken."""
    paths: dict[int, _Path] = {}
    taken: list[list[Box]] = []
    if hides:
        paths[len(looks) - 1], paths[0] = _behind(looks, sizes, frame, rng)
        taken += [_boxes(looks[number], path) for number, path in paths.items()]
    names, shares = list(_PLANS), list(_PLANS.values())
    moved = hides
    for number in (number for number in range(len(looks)) if number not in paths):
        plan = str(rng.choice(names, p=shares)) if moved else "move"
        plan = "still" if plan == "spin" and looks[number].kind in _ROUND else plan
        moved = True
        chances = [_path(plan, looks[number], sizes[number], frame, rng) for _ in range(14)]
        boxes = [_boxes(looks[number], chance) for chance in chances]
        best = min(range(len(chances)), key=lambda chance: _crowding(boxes[chance], taken))
        paths[number] = chances[best]
        taken.append(boxes[best])
    return [paths[number] for number in range(len(looks))]


def _path(plan: str, look: Look, size: float, frame: tuple[int, int], rng: np.random.Generator) -> _Path:
    start = somewhere(look, rest(size, rng), frame, rng)
    if plan == "still":
        return _Path(start, start)
    if plan == "spin":
        turn = float(rng.choice([-1, 1]) * rng.uniform(1.2, 2.2) * np.pi)
        return _Path(start, replace(start, angle=start.angle + turn))
    if plan in ("grow", "shrink"):
        small = replace(start, size=start.size * 0.55)
        return _Path(small, start) if plan == "grow" else _Path(start, small)
    direction = str(rng.choice(list(_DIRECTIONS)))
    if look.kind in _FACING and direction in ("left", "right"):
        start = replace(start, is_mirrored=direction == "left")
        start = somewhere(look, start, frame, rng)
    if plan == "move":
        return _across(look, start, direction, frame, rng)
    outside = _beyond(look, start, direction if plan == "leave" else _opposite(direction), frame)
    return _Path(start, outside) if plan == "leave" else _Path(outside, start)


def _across(look: Look, start: Pose, direction: str, frame: tuple[int, int], rng: np.random.Generator) -> _Path:
    """A way of at least a fifth of the frame, all of it inside; straight but for a little drift."""
    dx, dy = _DIRECTIONS[direction]
    left, top, right, bottom = reach(look, replace(start, x=0.0, y=0.0))
    room = frame[1] - 2 - (right - left) if dx else frame[0] - 2 - (bottom - top)
    way = room * rng.uniform(0.45, 1.0)
    first = 1 + rng.uniform(0, room - way)
    low, high = (first, first + way) if dx + dy > 0 else (first + way, first)
    drift = float(rng.uniform(-0.02, 0.02)) * min(frame)
    if dx:
        return _Path(replace(start, x=low - left), replace(start, x=high - left, y=start.y + drift))
    return _Path(replace(start, y=low - top), replace(start, x=start.x + drift, y=high - top))


def _beyond(look: Look, pose: Pose, direction: str, frame: tuple[int, int]) -> Pose:
    """The pose moved straight out of the frame, just so far that nothing is left of it."""
    left, top, right, bottom = reach(look, pose)
    ways = {
        "left": (-right - 3, 0.0),
        "right": (frame[1] - left + 3, 0.0),
        "up": (0.0, -bottom - 3),
        "down": (0.0, frame[0] - top + 3),
    }
    dx, dy = ways[direction]
    return replace(pose, x=pose.x + dx, y=pose.y + dy)


def _opposite(direction: str) -> str:
    return {"left": "right", "right": "left", "up": "down", "down": "up"}[direction]


def _behind(
    looks: Sequence[Look], sizes: Sequence[float], frame: tuple[int, int], rng: np.random.Generator
) -> tuple[_Path, _Path]:
    """A thing that stays about the middle (the last), and the way of another (the first) behind it and out again."""
    screen = somewhere(looks[-1], rest(sizes[-1], rng), frame, rng)
    screen = replace(screen, x=frame[1] * rng.uniform(0.42, 0.58), y=frame[0] * rng.uniform(0.42, 0.58))
    direction = str(rng.choice(["left", "right"] if frame[1] >= frame[0] else ["up", "down"]))
    mover = rest(sizes[0], rng)
    if looks[0].kind in _FACING:
        mover = replace(mover, is_mirrored=direction == "left")
    mover = replace(mover, x=screen.x, y=screen.y)
    left, top, right, bottom = reach(looks[0], mover)
    if direction in ("left", "right"):
        ends = [replace(mover, x=1 + mover.x - left), replace(mover, x=frame[1] - 1 - (right - mover.x))]
    else:
        ends = [replace(mover, y=1 + mover.y - top), replace(mover, y=frame[0] - 1 - (bottom - mover.y))]
    start, stop = ends if direction in ("right", "down") else ends[::-1]
    return _Path(screen, screen), _Path(start, stop)


def _boxes(look: Look, path: _Path) -> list[Box]:
    return [reach(look, pose) for pose in path.poses(6)]


def _crowding(boxes: Sequence[Box], taken: Sequence[Sequence[Box]]) -> float:
    return sum((shared(one, other) for there in taken for one, other in zip(boxes, there, strict=True)), 0.0)


def _is_watchable(pictures: Sequence[Picture]) -> bool:
    """Whether every thing shows at least 40 % of itself in at least 40 % of the frames."""
    shares = np.stack([picture.visible.sum(axis=(1, 2)) / picture.areas for picture in pictures])
    return bool(((shares >= 0.4).mean(axis=0) >= 0.4).all())


def _is_hidden_once(pictures: Sequence[Picture]) -> bool:
    """Whether the furthest thing is seen at both ends and in some frame not at all."""
    seen = [int(picture.visible[0].sum()) for picture in pictures]
    return seen[0] > 0 and seen[-1] > 0 and min(seen) == 0
