"""A scene: its pixels, the things in it, and everything that is true of them. Stills are made here.

Letters in shapes: n things, t frames (1 for a still), h w pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from segue.errors import ConfigError
from segue.media import open_media
from segue.synth.backgrounds import Background, choose, paint_background
from segue.synth.drawings import KINDS
from segue.synth.meaning import Facts, Thing
from segue.synth.painting import TEXTURES, Look, Picture, Pose, paint, reach
from segue.synth.phrases import Caption, Phrase, Question, caption, phrases, questions
from segue.types import Media

Split = Literal["train", "validation", "test"]

SIZES = {"small": (0.13, 0.17), "medium": (0.23, 0.29), "large": (0.4, 0.5)}
"""Of a thing, as a share of the frame's shorter side; the gaps keep the words unambiguous."""

_LEAST_TEXTURED = 22  # pixels; stripes and dots on anything smaller cannot be told apart
_LEAST_VISIBLE = 0.55
_ATTEMPTS = 200

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Scene:
    """A still (one frame) or a clip (several) and the whole truth about it.

    `things` are in order of depth, the furthest back first; that order is the n of every array. `visible` and `whole`
    are the masks without and with what is hidden behind nearer things (`segue.synth.painting` says which
    pixels belong). `boxes` are tight around visible masks, x0 y0 x1 y1 in pixels, right and bottom exclusive,
    and NaN where nothing is seen; `whole_boxes` and `areas` are of whole things and count what lies beyond the frame.

    `group` names the scene; whatever is made of it belongs into one split. Phrases, questions and the caption are in
    every language, worded by chance.
    """

    group: str
    background: str
    things: tuple[Thing, ...]
    poses: tuple[tuple[Pose, ...], ...]
    frames: UInt8[np.ndarray, "t h w 3"]
    visible: Bool[np.ndarray, "n t h w"]
    whole: Bool[np.ndarray, "n t h w"]
    boxes: Float[np.ndarray, "n t 4"]
    whole_boxes: Float[np.ndarray, "n t 4"]
    areas: Int[np.ndarray, "n t"]
    phrases: tuple[Phrase, ...]
    questions: tuple[Question, ...]
    caption: Caption

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.frames.shape[1], self.frames.shape[2]

    @property
    def facts(self) -> Facts:
        """All that judgements are made from, anew."""
        return Facts.of(
            self.things,
            self.poses,
            visible=self.visible,
            whole=self.whole,
            whole_boxes=self.whole_boxes,
            areas=self.areas,
        )

    @property
    def is_clip(self) -> bool:
        """Whether there are several frames."""
        return len(self.frames) > 1

    @property
    def media(self) -> Media:
        """The pixels as an image or a video."""
        return open_media(self.frames if self.is_clip else self.frames[0])


def scene(
    seed: int,
    index: int,
    *,
    split: Split = "train",
    size: tuple[int, int] | None = None,
    things: tuple[int, int] = (2, 6),
) -> Scene:
    """Still number `index` of a seed; the same arguments give the same scene, in any process.

    `size` is (height, width) in pixels, drawn between 128 and 640 if not given; `things` the least and the greatest
    number of things. Splits never meet: the split's name is part of the seed, so no seed and index of one reach into
    another. **The** test split is seed 0 of split "test", from index 0.

    Raises: ConfigError, for numbers out of range.
    """
    rng = generator("still", split, seed, index)
    frame = checked_size(size or draw_size(rng))
    if not 1 <= things[0] <= things[1] <= 12:
        raise ConfigError(f"a scene of {things[0]} to {things[1]} things cannot be drawn; expected 1 to 12")
    for _ in range(_ATTEMPTS):
        background = choose(rng)
        named, looks, sizes = draw_things(rng, int(rng.integers(things[0], things[1] + 1)), background, frame)
        poses = _arrange(looks, sizes, frame, rng)
        if poses is None:
            continue
        picture = paint(paint_background(background, frame, rng), looks, poses)
        shown = picture.visible.sum(axis=(1, 2)) / picture.areas
        if (shown >= _LEAST_VISIBLE).all():
            group = f"synth-{split}-{seed}-{index}-still"
            return assemble(group, background, named, poses=[[pose] for pose in poses], pictures=[picture], rng=rng)
    raise RuntimeError(f"no room for {things} things in {frame} pixels after {_ATTEMPTS} attempts")


def check_split(split: str) -> Split:
    """The split of that name.

    Raises: ConfigError, if it is not train, validation or test.
    """
    if split not in ("train", "validation", "test"):
        raise ConfigError(f"generated scenes have no split {split!r}; expected train, validation or test")
    return cast(Split, split)


def generator(purpose: str, split: Split, seed: int, index: int) -> np.random.Generator:
    """The source of chance for one scene, for nothing else and never met again under other names or numbers.

    Raises: ConfigError, for a number outside 0 to 2^32 - 1 or an unknown split.
    """
    # one word each: numpy spreads larger numbers over several, and then different numbers could meet
    if not all(0 <= number < 2**32 for number in (seed, index)):
        raise ConfigError(f"seed {seed} and index {index} must each lie between 0 and 2^32 - 1")
    if split not in ("train", "validation", "test"):
        raise ConfigError(f"unknown split {split!r}; expected train, validation or test")
    name = int.from_bytes(hashlib.sha256(f"segue/synth/{purpose}/{split}".encode()).digest()[:4])
    return np.random.default_rng([name, seed, index])


def checked_size(size: tuple[int, int]) -> tuple[int, int]:
    """The size, if things can be told apart in it.

    Raises: ConfigError, if not.
    """
    if min(size) < 64 or max(size) > 4096 or max(size) > 4 * min(size):
        raise ConfigError(
            f"a scene of {size} pixels (height, width) cannot be drawn; expected sides of 64 to 4096, at most 1:4"
        )
    return size


def draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """A (height, width) between 128 and 640 pixels, small and large ones alike, at most 1:2."""
    longer = int(round(128 * 5 ** rng.uniform()))
    shorter = max(128, int(round(longer / 2 ** rng.uniform())))
    return (longer, shorter) if rng.uniform() < 0.4 else (shorter, longer)


def draw_things(
    rng: np.random.Generator, count: int, background: Background, frame: tuple[int, int]
) -> tuple[list[Thing], list[Look], list[float]]:
    """So many things that stand out from the background, how they look, and their sizes in pixels.

    Kinds and colours repeat more often than by chance, so that there is something to tell apart.
    """
    colours = background.colours()
    things: list[Thing] = []
    looks: list[Look] = []
    sizes: list[float] = []
    for _ in range(count):
        kind = things[rng.integers(len(things))].kind if things and rng.uniform() < 0.4 else str(rng.choice(KINDS))
        again = bool(things) and rng.uniform() < 0.3
        colour = things[rng.integers(len(things))].colour if again else str(rng.choice(colours))
        size = str(rng.choice(list(SIZES), p=[0.34, 0.42, 0.24]))
        sizes.append(float(rng.uniform(*SIZES[size])) * min(frame))
        is_textured = sizes[-1] >= _LEAST_TEXTURED and rng.uniform() < 0.42
        things.append(Thing(kind, colour, str(rng.choice(TEXTURES[1:])) if is_textured else "plain", size))
        red, green, blue = (int(shift) for shift in rng.integers(-6, 7, 3))
        looks.append(Look(kind, colour, things[-1].texture, (red, green, blue), float(rng.uniform(0, np.pi))))
    return things, looks, sizes


def rest(size: float, rng: np.random.Generator) -> Pose:
    """A thing of this size at the origin, upright or nearly so, facing either way."""
    angle = float(np.clip(rng.normal(0, 0.1), -0.22, 0.22))
    return Pose(0.0, 0.0, size, angle, bool(rng.uniform() < 0.5))


def somewhere(look: Look, pose: Pose, frame: tuple[int, int], rng: np.random.Generator) -> Pose:
    """The pose moved to a place where all of the thing is inside the frame; in its middle if it is too large."""
    left, top, right, bottom = reach(look, replace(pose, x=0.0, y=0.0))
    place = []
    for low, high, room in ((left, right, frame[1]), (top, bottom, frame[0])):
        first, last = 1 - low, room - 1 - high
        place.append(float(rng.uniform(first, last)) if first < last else (first + last) / 2)
    return replace(pose, x=place[0], y=place[1])


def shared(first: Box, second: Box) -> float:
    """The area that two boxes have in common."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)


def assemble(
    group: str,
    background: Background,
    things: Sequence[Thing],
    *,
    poses: Sequence[Sequence[Pose]],
    pictures: Sequence[Picture],
    rng: np.random.Generator,
) -> Scene:
    """The scene of some pictures, one per frame, with words for what is true of it."""
    visible = np.stack([picture.visible for picture in pictures], axis=1)
    whole = np.stack([picture.whole for picture in pictures], axis=1)
    whole_boxes = np.stack([picture.boxes for picture in pictures], axis=1)
    areas = np.stack([picture.areas for picture in pictures], axis=1)
    facts = Facts.of(tuple(things), poses, visible=visible, whole=whole, whole_boxes=whole_boxes, areas=areas)
    return Scene(
        group=group,
        background=background.kind,
        things=tuple(things),
        poses=tuple(tuple(path) for path in poses),
        frames=np.stack([picture.pixels for picture in pictures]),
        visible=visible,
        whole=whole,
        boxes=facts.boxes,
        whole_boxes=whole_boxes,
        areas=areas,
        phrases=phrases(facts, rng),
        questions=questions(facts, rng),
        caption=caption(facts, background.kind, rng),
    )


def _arrange(
    looks: Sequence[Look], sizes: Sequence[float], frame: tuple[int, int], rng: np.random.Generator
) -> list[Pose] | None:
    """Places for all things, apart from one another but for, perhaps, one pair; `None` if there is no room."""
    poses: dict[int, Pose] = {}
    boxes: dict[int, Box] = {}
    partner = int(rng.integers(1, len(looks))) if len(looks) > 1 and rng.uniform() < 0.5 else 0
    order = sorted(range(len(looks)), key=lambda number: -sizes[number])
    for rank, number in enumerate(order):
        start = rest(sizes[number], rng)
        other = order[int(rng.integers(rank))] if rank and rank == partner else None
        for _ in range(60):
            pose = somewhere(looks[number], start, frame, rng)
            box = reach(looks[number], pose)
            if _fits(box, boxes, other, gap=0.015 * min(frame)):
                poses[number], boxes[number] = pose, box
                break
        else:
            return None
    return [poses[number] for number in range(len(looks))]


def _fits(box: Box, taken: dict[int, Box], other: int | None, *, gap: float) -> bool:
    """Whether a box keeps clear of all others, and overlaps `other` about as one thing half behind another does."""
    wider = (box[0] - gap, box[1] - gap, box[2] + gap, box[3] + gap)
    if any(shared(wider, there) for number, there in taken.items() if number != other):
        return False
    if other is None:
        return True
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, taken[other]))
    return 0.15 <= shared(box, taken[other]) / smaller <= 0.6
