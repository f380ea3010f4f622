"""What only shows over all rows: images of another size, groups and images that meet across splits, repeats."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from segue.own_data.doctor.findings import Finding
from segue.own_data.doctor.rows import Seen, Size
from segue.own_data.folder import MORE_GROUPS, Row

SIDES = (
    *(200, 224, 256, 299, 320, 336, 384, 400, 448, 480, 500, 512, 540, 576, 600, 640, 672, 700, 720, 750, 768, 800),
    *(854, 896, 900, 960, 1000, 1024, 1080, 1200, 1280, 1344, 1440, 1500, 1536, 1600, 1920, 2000, 2048, 2160, 2560),
    *(3000, 3072, 3200, 3840, 4000, 4096),
)
"""Longer sides that images often have."""

_OUT = 1.02  # how far polygons of a row must reach, as a share of the image, to speak of another image
_FEW = 3  # rows that must speak of it, if not all do
_GAP = 1.15  # a row that reaches so much further than all others is a slip, not an image of its own
_ENOUGH = 20  # rows from which to conclude that an image was smaller
_SMALLER = 0.8
_EXTREMES = (min, min, max, max)


@dataclass(frozen=True, slots=True)
class Frame:
    """The image that polygons were drawn on, as far as they tell: its (height, width), and which rows speak of it."""

    size: Size
    rows: tuple[int, ...]


def frames(seen: Sequence[Seen]) -> list[tuple[Size, Frame]]:
    """For each size of images whose polygons speak of another one: that size, and the image they speak of.

    Polygons tell of a larger image by leaving theirs. How large it was they tell together: the least usual size that
    holds them all. They are taken to have the shape of their image.
    """
    found = []
    for size, members in _by_size(seen).items():
        reaches = {number: max((seen[number].reach or (0, 0, 0, 0))[2:]) for number in members}
        out = sorted((number for number in members if reaches[number] > _OUT), key=reaches.__getitem__)
        while len(out) > _FEW and reaches[out[-1]] > _GAP * reaches[out[-2]]:
            out.pop()
        if len(out) >= _FEW or (out and len(out) == len(members)):
            found.append((size, Frame(_usual(size, reaches[out[-1]]), tuple(sorted(out)))))
    return found


def other_frames(rows: Sequence[Row], seen: Sequence[Seen], splits: Sequence[str]) -> Iterator[Finding]:
    """One finding for each row drawn on another image, and one for those rows of its kind of which nobody can tell."""
    sizes = _by_size(seen)
    speaking: set[int] = set()
    for (height, width), frame in frames(seen):
        drawn_on, scale = f"{frame.size[1]}x{frame.size[0]}", width / frame.size[1]
        speaking.update(frame.rows)
        for number in frame.rows:
            _, _, right, bottom = seen[number].reach or (0, 0, 0, 0)
            value = f"reaches to {right * width:.0f}, {bottom * height:.0f} on an image of {width}x{height}"
            expected = f"coordinates of its image; they look drawn on {drawn_on}: scale by {scale:.4g}"
            yield Finding("other_frame", number, rows[number].entry.names[0], value, expected, splits[number])
        silent = [number for number in sizes[height, width] if number not in frame.rows]
        if silent:
            groups = {rows[number].entry.group for number in frame.rows}
            near = sum(rows[number].entry.group in groups for number in silent)
            value = (
                f"{len(silent)} more rows with images of {width}x{height} stay inside them, {near} in groups of those"
            )
            expected = f"none that was drawn on {drawn_on} too: it would be wrong, and nothing shows it"
            yield Finding("maybe_other_frame", None, "", value, expected)
    yield from _smaller_frames({size: members for size, members in sizes.items() if not speaking & set(members)}, seen)


def _smaller_frames(sizes: Mapping[Size, Sequence[int]], seen: Sequence[Seen]) -> Iterator[Finding]:
    """Sizes of images of which polygons leave a broad strip free at the right and below, in every row."""
    for (height, width), members in sizes.items():
        reaches = [reach for number in members if (reach := seen[number].reach)]
        if len(reaches) < _ENOUGH:
            continue
        left, top, right, bottom = (least([reach[side] for reach in reaches]) for side, least in enumerate(_EXTREMES))
        if max(right, bottom) < _SMALLER and max(left, top) < 1 - _SMALLER:
            size = _usual((height, width), max(right, bottom))
            value = f"nothing of {len(reaches)} rows reaches beyond {right * width:.0f}, {bottom * height:.0f}"
            expected = f"something near {width}, {height}; perhaps drawn on {size[1]}x{size[0]}"
            yield Finding("maybe_other_frame", None, "", value, expected)


def refined(seen: Sequence[Seen]) -> Iterator[Finding]:
    """The findings of rows, but without those of coordinates outside where the whole row was drawn on another image."""
    explained = {number for _, frame in frames(seen) for number in frame.rows}
    for number, one in enumerate(seen):
        for finding in one.findings:
            if finding.kind != "outside" or number not in explained:
                yield finding


def leaks(rows: Sequence[Row], seen: Sequence[Seen], splits: Sequence[str]) -> Iterator[Finding]:
    """Groups, folders and images that are in more than one split."""
    by_group: dict[str, list[int]] = {}
    by_digest: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        by_group.setdefault(row.entry.group, []).append(number)
        if seen[number].digest:
            by_digest.setdefault(seen[number].digest, []).append(number)
    for group, members in by_group.items():
        if len({splits[number] for number in members}) > 1:
            kind = "group_leak" if rows[members[0]].is_grouped else "folder_leak"
            yield _met(kind, group, members, rows, splits)
    for members in by_digest.values():
        if len({splits[number] for number in members}) > 1:
            yield _met("image_leak", "the same bytes", members, rows, splits)
        elif _repeats(members, rows, seen):
            first, others = members[0], [rows[number].entry.names[0] for number in members[1:]]
            value = f"the same bytes as {', '.join(others[:3])}{' ...' if len(others) > 3 else ''}"
            yield Finding("same_image", first, rows[first].entry.names[0], value, "one row an image", splits[first])


def few_groups(rows: Sequence[Row], splits: Sequence[str]) -> Iterator[Finding]:
    """Whether the data say no splits and cannot be dealt out either."""
    if rows and set(splits) == {""}:
        groups = len({row.entry.group for row in rows})
        yield Finding(
            "few_groups", None, "", f"no splits, and {groups} groups", f"splits, or 3 groups or more: {MORE_GROUPS}"
        )


def without_split(rows: Sequence[Row]) -> Iterator[Finding]:
    """Rows in no split, where others are in one: they are taken for training."""
    left = [number for number, row in enumerate(rows) if not row.entry.split]
    if 0 < len(left) < len(rows):
        names = ", ".join(rows[number].entry.names[0] for number in left[:3])
        more = f" and {len(left) - 3:,} more" if len(left) > 3 else ""
        yield Finding("no_split", left[0], rows[left[0]].entry.names[0], f"{names}{more}", "a split", "train")


def _met(kind: str, what: str, members: Sequence[int], rows: Sequence[Row], splits: Sequence[str]) -> Finding:
    counts = Counter(splits[number] for number in members)
    where = " and ".join(f"{split} ({count} row{'s' * (count > 1)})" for split, count in counts.most_common())
    first = next(number for number in members if splits[number] == counts.most_common()[-1][0])
    return Finding(kind, first, rows[first].entry.names[0], f"{what}: in {where}", "one split only", splits[first])


def _repeats(members: Sequence[int], rows: Sequence[Row], seen: Sequence[Seen]) -> bool:
    """Whether rows of one image repeat it: a file of its own each, or the same words asked again.

    One file may well be named by several rows, each with other words.
    """
    if len(members) < 2:
        return False
    names = {rows[number].entry.names[0] for number in members}
    texts = [text for number in members for text in seen[number].texts]
    return len(names) > 1 or len(set(texts)) < len(texts)


def _by_size(seen: Sequence[Seen]) -> Mapping[Size, list[int]]:
    """Rows with polygons of which no size is stated, by the size of their image."""
    found: dict[Size, list[int]] = {}
    for number, one in enumerate(seen):
        if one.size is not None and one.reach is not None:
            found.setdefault(one.size, []).append(number)
    return found


def _usual(size: Size, reach: float) -> Size:
    """The least image of a usual size and this shape that holds polygons which reach so far."""
    longer = max(size)
    needed = longer * reach - 1
    side = next((side for side in SIDES if side >= needed), math.ceil(needed))
    side = side if side <= 1.15 * needed else math.ceil(needed)
    return round(size[0] * side / longer), round(size[1] * side / longer)
