"""What words mean in a scene: which things a query denotes, judged by attributes and exact masks, never by chance.

Judgements have three values: true, false, and `None` where people could disagree (a star hardly left of a circle, a
medium thing called large). A query is used only where nothing about it is unclear.
Letters in shapes: n things, t frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from segue.geometry.masks import box_of
from segue.synth.painting import Pose

Truth = bool | None


@dataclass(frozen=True, slots=True)
class Thing:
    """The attributes of a thing that words can name. `size` is small, medium or large."""

    kind: str
    colour: str
    texture: str
    size: str


@dataclass(frozen=True, slots=True)
class Noun:
    """Attributes asked for, `None` for any: "large red thing" is Noun(colour="red", size="large")."""

    kind: str | None = None
    colour: str | None = None
    texture: str | None = None
    size: str | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """What a phrase asks for: things of a noun that pass a test.

    `test` is a key of `TESTS`, `EXTREMES` or `RELATIONS`; a relation needs an `anchor` that denotes one thing.
    """

    noun: Noun
    test: str | None = None
    anchor: Noun | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """All that judgements are made from.

    `boxes` of what is seen (NaN if nothing is) and `whole_boxes` in pixels, `areas` of whole things in pixels, wherever
    they are; `inside` and `seen` count the pixels within the frame, with and without hidden ones; `under[i, j]` counts
    those of thing i that the nearer thing j covers. `angles` in radians.
    """

    things: tuple[Thing, ...]
    size: tuple[int, int]
    boxes: Float[np.ndarray, "n t 4"]
    whole_boxes: Float[np.ndarray, "n t 4"]
    areas: Int[np.ndarray, "n t"]
    inside: Int[np.ndarray, "n t"]
    seen: Int[np.ndarray, "n t"]
    under: Int[np.ndarray, "n n t"]
    angles: Float[np.ndarray, "n t"]

    @classmethod
    def of(
        cls,
        things: tuple[Thing, ...],
        poses: Sequence[Sequence[Pose]],
        *,
        visible: Bool[np.ndarray, "n t h w"],
        whole: Bool[np.ndarray, "n t h w"],
        whole_boxes: Float[np.ndarray, "n t 4"],
        areas: Int[np.ndarray, "n t"],
    ) -> Facts:
        """The facts of things in order of depth, from their masks."""
        count, frames, *size = visible.shape
        boxes = np.full((count, frames, 4), np.nan)
        under = np.zeros((count, count, frames), dtype=np.int64)
        for number in range(count):
            for frame in range(frames):
                box = box_of(visible[number, frame])
                boxes[number, frame] = np.nan if box is None else box
            for nearer in range(number + 1, count):
                under[number, nearer] = np.count_nonzero(whole[number] & whole[nearer], axis=(1, 2))
        return cls(
            things=things,
            size=(size[0], size[1]),
            boxes=boxes,
            whole_boxes=whole_boxes,
            areas=areas,
            inside=np.count_nonzero(whole, axis=(2, 3)),
            seen=np.count_nonzero(visible, axis=(2, 3)),
            under=under,
            angles=np.array([[pose.angle for pose in path] for path in poses]),
        )

    @property
    def is_clip(self) -> bool:
        """Whether there are several frames: then motion can be spoken of, and places cannot."""
        return len(self.boxes[0]) > 1

    def place(self, number: int) -> tuple[float, float]:
        """The centre of what is seen of a thing in the first frame, x and y as shares of width and height."""
        left, top, right, bottom = self.boxes[number, 0]
        return float(left + right) / 2 / self.size[1], float(top + bottom) / 2 / self.size[0]

    def way(self, number: int) -> tuple[float, float]:
        """How far a thing's centre goes from the first to the last frame, x and y as shares of the shorter side."""
        first, last = self.whole_boxes[number, 0], self.whole_boxes[number, -1]
        move = (last[:2] + last[2:] - first[:2] - first[2:]) / 2 / min(self.size)
        return float(move[0]), float(move[1])

    def growth(self, number: int) -> float:
        """The last frame's size of a thing as a multiple of the first's, in length."""
        return float(np.sqrt(self.areas[number, -1] / self.areas[number, 0]))

    def turn(self, number: int) -> float:
        """By how much a thing turns, in radians."""
        return float(abs(self.angles[number, -1] - self.angles[number, 0]))

    def keeps_size(self, number: int) -> bool:
        """Whether a thing neither grows nor shrinks, but for a pixel here and there."""
        return 0.9 < self.growth(number) < 1.1


def left_to_right(boxes: Float[np.ndarray, "n t 4"]) -> list[int]:
    """The numbers of things, the leftmost first, by the centre of the box in the first frame that shows each."""
    shown = np.argmin(np.isnan(boxes[:, :, 0]), axis=1)
    centres = boxes[np.arange(len(boxes)), shown][:, [0, 2]].sum(axis=1)
    return [int(number) for number in np.argsort(centres, kind="stable")]


def denote(query: Query, facts: Facts) -> tuple[int, ...] | None:
    """The things that a query is true of, in order of depth; empty if none is; `None` if that is not clear."""
    truths = are(query.noun, facts)
    if query.test in EXTREMES:
        found = _judged(truths)
        return None if found is None else _extreme(query.test, facts, found)
    if query.test is not None and query.anchor is None:
        test = TESTS[query.test]
        truths = _narrowed(truths, lambda number: test(facts, number))
    elif query.test is not None and query.anchor is not None:
        anchors = _judged(are(query.anchor, facts))
        if anchors is None or len(anchors) != 1:
            return None
        relation, anchor = RELATIONS[query.test], anchors[0]
        truths = _narrowed(truths, lambda number: number != anchor and relation(facts, number, anchor))
    return _judged(truths)


def are(noun: Noun, facts: Facts) -> list[Truth]:
    """Whether each thing is what a noun says.

    Size words are unclear for medium things and for such as change their size.
    """
    truths: list[Truth] = []
    for number, thing in enumerate(facts.things):
        is_named = (
            noun.kind in (None, thing.kind)
            and noun.colour in (None, thing.colour)
            and noun.texture in (None, thing.texture)
        )
        if not is_named or noun.size is None:
            truths.append(is_named)
        elif thing.size == "medium" or not facts.keeps_size(number):
            truths.append(None)
        else:
            truths.append(thing.size == noun.size)
    return truths


def _narrowed(truths: Sequence[Truth], passes: Callable[[int], Truth]) -> list[Truth]:
    """Both: false where either is, else unclear where either is. What fails already is not asked again."""
    narrowed: list[Truth] = []
    for number, truth in enumerate(truths):
        passed = False if truth is False else passes(number)
        narrowed.append(False if passed is False else None if truth is None else passed)
    return narrowed


def _judged(truths: Sequence[Truth]) -> tuple[int, ...] | None:
    return None if None in truths else tuple(number for number, truth in enumerate(truths) if truth)


def _extreme(test: str, facts: Facts, candidates: tuple[int, ...]) -> tuple[int, ...] | None:
    """The one candidate that leads all others by a clear margin in every way it is measured; there must be others."""
    measure, margin = EXTREMES[test]
    values = [measure(facts, number) for number in candidates]
    if len(candidates) < 2 or None in values:
        return None
    rows = np.array(values, dtype=np.float64)
    best = int(rows[:, 0].argmax())
    rivals = np.delete(rows, best, axis=0).max(axis=0)
    return (candidates[best],) if (rows[best] >= rivals + margin).all() else None


def _side(axis: int, *, is_low: bool) -> Callable[[Facts, int], Truth]:
    """In the left (upper) part or the right (lower) part of the frame; unclear near the middle."""

    def test(facts: Facts, number: int) -> Truth:
        place = facts.place(number)[axis]
        depth = place if is_low else 1 - place
        return True if depth <= 0.4 else False if depth >= 0.5 else None

    return test


def _corner(*, is_left: bool, is_top: bool) -> Callable[[Facts, int], Truth]:
    def test(facts: Facts, number: int) -> Truth:
        x, y = facts.place(number)
        depth = max(x if is_left else 1 - x, y if is_top else 1 - y)
        return True if depth <= 0.33 else False if depth >= 0.45 else None

    return test


def _in_the_middle(facts: Facts, number: int) -> Truth:
    distance = max(abs(share - 0.5) for share in facts.place(number))
    return True if distance <= 0.12 else False if distance >= 0.2 else None


def _goes(x: int, y: int) -> Callable[[Facts, int], Truth]:
    """Moves in one of the four directions, and not much aside."""

    def test(facts: Facts, number: int) -> Truth:
        way = facts.way(number)
        along, aside = way[0] * x + way[1] * y, abs(way[0] * y) + abs(way[1] * x)
        if along >= 0.12 and aside <= along / 3:
            return True
        return False if along <= 0.05 else None

    return test


def _moves(facts: Facts, number: int) -> Truth:
    distance = float(np.hypot(*facts.way(number)))
    if distance >= 0.12:
        return True
    return False if distance <= 0.02 and facts.keeps_size(number) and facts.turn(number) < 0.1 else None


def _stays(facts: Facts, number: int) -> Truth:
    moves = _moves(facts, number)
    return None if moves is None else not moves


def _turns(facts: Facts, number: int) -> Truth:
    return True if facts.turn(number) >= 2 else False if facts.turn(number) <= 0.1 else None


def _changes(*, is_growth: bool) -> Callable[[Facts, int], Truth]:
    def test(facts: Facts, number: int) -> Truth:
        growth = facts.growth(number) if is_growth else 1 / facts.growth(number)
        return True if growth >= 1.4 else False if growth <= 1.1 else None

    return test


def _leaves(facts: Facts, number: int) -> Truth:
    if facts.inside[number, -1] == 0:
        return True if facts.seen[number, 0] else None
    return False if facts.inside[number, -1] == facts.areas[number, -1] else None


def _enters(facts: Facts, number: int) -> Truth:
    if facts.inside[number, 0] == 0:
        return True if facts.seen[number, -1] else None
    return False if facts.inside[number, 0] == facts.areas[number, 0] else None


def _is_hidden(facts: Facts, number: int) -> Truth:
    """Seen, then behind something else altogether, then seen again; clearly not if half of it can always be seen."""
    within = facts.inside[number] > 0
    gone = np.flatnonzero(within & (facts.seen[number] == 0))
    if len(gone):
        return True if facts.seen[number, : gone[0]].any() and facts.seen[number, gone[-1] :].any() else None
    return False if bool((facts.seen[number][within] >= 0.5 * facts.inside[number][within]).all()) else None


def _is_towards(x: int, y: int) -> Callable[[Facts, int, int], Truth]:
    """On one side of the anchor, rather than above or below it (or the other way about)."""

    def test(facts: Facts, number: int, anchor: int) -> Truth:
        here, there = facts.place(number), facts.place(anchor)
        scale = np.array([facts.size[1], facts.size[0]]) / min(facts.size)
        dx, dy = (np.array(here) - there) * scale
        along, aside = dx * x + dy * y, abs(dx * y) + abs(dy * x)
        if along >= 0.1 and aside <= along:
            return True
        return False if along <= 0 else None

    return test


def _is_behind(facts: Facts, number: int, anchor: int) -> Truth:
    if number > anchor or not facts.under[number, anchor, 0]:
        return False
    return True if facts.under[number, anchor, 0] >= 0.08 * facts.areas[number, 0] else None


def _is_in_front(facts: Facts, number: int, anchor: int) -> Truth:
    return _is_behind(facts, anchor, number)


def _passes_behind(facts: Facts, number: int, anchor: int) -> Truth:
    if number > anchor:
        return False
    most = float((facts.under[number, anchor] / facts.areas[number]).max())
    if most == 0:
        return False
    return True if most >= 0.5 and _moves(facts, number) else None


def _edge(axis: int, sign: int) -> Callable[[Facts, int], tuple[float, ...] | None]:
    return lambda facts, number: (sign * facts.place(number)[axis],)


def _bulk(sign: int) -> Callable[[Facts, int], tuple[float, ...] | None]:
    """Size by pixels and by the room taken, on a scale where a difference is a ratio."""

    def measure(facts: Facts, number: int) -> tuple[float, ...] | None:
        if not facts.keeps_size(number):
            return None
        sides = facts.whole_boxes[number, 0, 2:] - facts.whole_boxes[number, 0, :2]
        return sign * float(np.log(facts.areas[number, 0])), sign * float(np.log(sides.prod()))

    return measure


def _speed(facts: Facts, number: int) -> tuple[float, ...] | None:
    """How far a thing goes, on a scale where a difference is a ratio; less than a tenth of the frame counts as that."""
    return (float(np.log(max(0.1, np.hypot(*facts.way(number))))),)


PLACES: dict[str, Callable[[Facts, int], Truth]] = {
    "left": _side(0, is_low=True),
    "right": _side(0, is_low=False),
    "top": _side(1, is_low=True),
    "bottom": _side(1, is_low=False),
    "top_left": _corner(is_left=True, is_top=True),
    "top_right": _corner(is_left=False, is_top=True),
    "bottom_left": _corner(is_left=True, is_top=False),
    "bottom_right": _corner(is_left=False, is_top=False),
    "middle": _in_the_middle,
}
"""Where in a still a thing is."""

DIRECTIONS: dict[str, Callable[[Facts, int], Truth]] = {
    "moving_left": _goes(-1, 0),
    "moving_right": _goes(1, 0),
    "moving_up": _goes(0, -1),
    "moving_down": _goes(0, 1),
}

MOTIONS: dict[str, Callable[[Facts, int], Truth]] = {
    **DIRECTIONS,
    "moving": _moves,
    "staying": _stays,
    "turning": _turns,
    "growing": _changes(is_growth=True),
    "shrinking": _changes(is_growth=False),
}
"""What a thing does through a clip."""

EVENTS: dict[str, Callable[[Facts, int], Truth]] = {"leaving": _leaves, "entering": _enters, "hidden": _is_hidden}
"""What happens to a thing in a clip."""

TESTS = PLACES | MOTIONS | EVENTS

STILL_RELATIONS: dict[str, Callable[[Facts, int, int], Truth]] = {
    "left_of": _is_towards(-1, 0),
    "right_of": _is_towards(1, 0),
    "above": _is_towards(0, -1),
    "below": _is_towards(0, 1),
    "behind": _is_behind,
    "in_front_of": _is_in_front,
}

CLIP_RELATIONS: dict[str, Callable[[Facts, int, int], Truth]] = {"passing_behind": _passes_behind}

RELATIONS = STILL_RELATIONS | CLIP_RELATIONS

Measure = Callable[[Facts, int], tuple[float, ...] | None]

BULKS: dict[str, tuple[Measure, float]] = {
    "largest": (_bulk(1), float(np.log(1.4))),
    "smallest": (_bulk(-1), float(np.log(1.4))),
}

STILL_EXTREMES: dict[str, tuple[Measure, float]] = {
    "leftmost": (_edge(0, -1), 0.07),
    "rightmost": (_edge(0, 1), 0.07),
    "topmost": (_edge(1, -1), 0.07),
    "bottommost": (_edge(1, 1), 0.07),
    **BULKS,
}

CLIP_EXTREMES: dict[str, tuple[Measure, float]] = {**BULKS, "fastest": (_speed, float(np.log(1.5)))}

EXTREMES = STILL_EXTREMES | CLIP_EXTREMES
"""What makes a thing the first among several: how it is measured, and by how much it must lead in every measure."""
