"""Text to regions: the marks that a model writes into its answer to point at things."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from segue.errors import ConfigError
from segue.types import Region

_SEGMENT = "[SEG]"
_MARK = re.compile(r"(\[SEG\]|</?p>|</?vp>|<\|im_end\|>|<\|end\|>|<\|endoftext\|>|</?s>)")
_NUMBER = r"(\d+(?:\.\d+)?)"
_BOX = re.compile(r"<box>\s*\[\[(\s*\d+\s*(?:,\s*\d+\s*){3})\]\]\s*</box>")
_CORNERS = re.compile(rf"\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\),\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)")
_THOUSAND = 1000
_JOINER = re.compile(r"\s*(,|and|, and)\s*")
_STOPS = ".,;:!?…。，、；：！？"
_PAUSES = ",;:，、；："
_CLINGING = re.compile(rf"[{_STOPS})\]}}%）]|['’]s\b")


def check_prefill(prefill: str | None) -> None:
    """Refuse a reply given for the model to begin from that asks for no mask, where masks are what is wanted.

    Raises: ConfigError.
    """
    if prefill is not None and _SEGMENT not in prefill:
        raise ConfigError(
            f"the prefill {prefill!r} asks for no mask, because it has no {_SEGMENT}; say 'It is {_SEGMENT}.'"
        )


def parse(raw: str, size: tuple[int, int] | None, _: object) -> tuple[str, tuple[Region, ...]]:
    """An answer in the notation of InternVL and Sa2VA: `parse_grounded`, and after its regions those of `parse_boxes`.

    Without the (height, width) `size` of a medium there are no boxes.
    """
    text, regions = parse_grounded(raw)
    return text, regions if size is None else regions + parse_boxes(raw, size)


def parse_grounded(raw: str) -> tuple[str, tuple[Region, ...]]:
    """An answer in Sa2VA's notation, `<p> phrase </p> [SEG]`, as clean text and one region per `[SEG]`, in order.

    A region whose `[SEG]` directly follows a tagged phrase carries that phrase and its span in the clean text, so that
    `text[start:stop] == phrase`. Any other `[SEG]`, or one after an empty phrase, has phrase "" and no span. Tags are
    matched like brackets: of nested phrases the outer one wins where it is the one that `[SEG]` follows; a tag without
    its partner is dropped. The i-th region always belongs to the i-th `[SEG]`, whatever the tags do.

    The clean text has neither tags, `[SEG]` nor end-of-text tokens. Only where one stood is it tidied: spaces merge
    into one or into the line break among them, none is left before punctuation, a comma is not left before a stop
    (`Sure, [SEG].` is "Sure."), and neither is the "and" or comma between two `[SEG]` (`It is [SEG] and [SEG].` is
    "It is."). It may be empty, with regions.
    """
    text, marks = _clean(raw)
    return text, tuple(_regions(text, marks))


def box_text(box: Float[np.ndarray, " 4"], size: tuple[int, int]) -> str:
    """A box in words, `<box>[[x0, y0, x1, y1]]</box>` without spaces, in thousandths of (height, width) `size`.

    Source: InternVL's notation.
    """
    height, width = size
    shares = box / np.array([width, height, width, height])
    numbers = np.clip(np.rint(shares * _THOUSAND), 0, _THOUSAND).astype(int)
    return f"<box>[[{','.join(map(str, numbers))}]]</box>"


def parse_boxes(raw: str, size: tuple[int, int]) -> tuple[Region, ...]:
    """The boxes that an answer gives in words, in reading order, in pixels of a medium of (height, width) `size`.

    What is not written as `box_text` does is no box; a box may be empty. Coordinates past 1000 are clipped.
    """
    height, width = size
    scale = np.array([width, height, width, height]) / _THOUSAND
    found = (np.array([int(number) for number in match[1].split(",")]) for match in _BOX.finditer(raw))
    return tuple(Region(box=np.minimum(numbers, _THOUSAND) * scale) for numbers in found)


def corners(raw: str) -> tuple[tuple[float, float, float, float], ...]:
    """The boxes in Qwen-VL's notation, `(x1,y1),(x2,y2)`, in reading order, as x1 y1 x2 y2 in its thousandths.

    The `<box>` around them may be missing, for a prompt may end with it. Anything else between brackets is no box.
    """
    return tuple(
        (float(left), float(top), float(right), float(bottom)) for left, top, right, bottom in _CORNERS.findall(raw)
    )


def _clean(raw: str) -> tuple[str, list[tuple[str, int]]]:
    """The text without marks, and every mark in order with the length of clean text that stood before it."""
    pieces = _MARK.split(raw)  # text and marks in turn, text first and last
    text, fixed = "", 0
    gap: list[str] = []
    marks: list[tuple[str, int]] = []
    for position, piece in enumerate(pieces):
        body = piece.strip()
        if position % 2:
            marks.append((piece, len(text)))
            fixed = len(text) if piece == "</p>" else fixed
        elif not body or _is_joiner(pieces, position):
            gap.append(piece)
        else:
            before, after = piece.split(body, 1)
            space = _space([*gap, before], text)
            # Punctuation that opens the answer or a phrase was put there; no mark has orphaned it.
            is_opening = position == 0 or pieces[position - 1] == "<p>"
            text = text + space + body if is_opening else _join(text, space, body, fixed)
            gap = [after]
    return text, marks


def _is_joiner(pieces: list[str], position: int) -> bool:
    """Whether the piece only joins the `[SEG]` before it to the `[SEG]` after it."""
    return pieces[position - 1 : position + 2 : 2] == [_SEGMENT, _SEGMENT] and bool(_JOINER.fullmatch(pieces[position]))


def _space(gap: list[str], text: str) -> str:
    """What is left after `text` of the white space in a gap: its line breaks, else one space or nothing."""
    if not text:
        return ""
    line_breaks = max(piece.count("\n") for piece in gap)
    if line_breaks:
        return "\n" * line_breaks
    return " " if any(gap) and text[-1] not in "([（" else ""


def _join(text: str, space: str, body: str, fixed: int) -> str:
    """The two sides of a gap, less punctuation that has lost its word; `text[:fixed]` holds phrases and stays."""
    if not text:
        return body.lstrip(_STOPS).lstrip()
    if "\n" in space or not _CLINGING.match(body):
        return text + space + body
    return text[:fixed] + text[fixed:].rstrip(_PAUSES + " ") + body


def _regions(text: str, marks: list[tuple[str, int]]) -> Iterator[Region]:
    """One region per `[SEG]`; marks at the same length of clean text have nothing but space between them."""
    opened: list[int] = []
    closed: tuple[int, int] | None = None
    for mark, length in marks:
        if mark == "<p>":
            opened.append(length)
        elif mark == "</p>" and opened:
            closed = opened.pop(), length
        elif mark == _SEGMENT:
            start, stop = closed or (0, 0)
            phrase = text[start:stop].lstrip() if stop == length else ""
            yield Region(phrase=phrase, span=(stop - len(phrase), stop) if phrase else None)
            closed = None
