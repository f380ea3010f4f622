"""Qwen-VL's notation: `<ref>phrase</ref>` followed by boxes or quads, in thousandths of the picture's sides.

A box is `<box>(x0,y0),(x1,y1)</box>`, a quad `<quad>(x,y),(x,y),(x,y),(x,y)</quad>`, numbers from 0 to 999 without
spaces. 0 is the left or upper edge and 999 the right or lower one, as where the original measures boxes.

Source: Qwen-VL (arXiv 2308.12966), 3.2, and `tokenization_qwen.py` of its checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Num

from segue.types import Region

LARGEST = 999
"""What stands for the whole width or height."""

Kind = Literal["text", "image", "ref", "box", "quad"]
MARKS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>")

_KINDS: dict[str, Kind] = {"img": "image", "ref": "ref", "box": "box", "quad": "quad"}
_ELEMENT = re.compile(r"<(img|ref|box|quad)>((?:(?!</?(?:img|ref|box|quad)>).)*)</\1>", re.DOTALL)
_NUMBER = r"(\d{1,9}(?:\.\d{1,9})?)"
_POINT = rf"\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)"
_POINTS = {"box": re.compile(rf"{_POINT},\s*{_POINT}"), "quad": re.compile(rf"{_POINT},{_POINT},{_POINT},{_POINT}")}
_MARK = re.compile("|".join(map(re.escape, (*MARKS, "<|im_end|>", "<|im_start|>", "<|endoftext|>"))))


@dataclass(frozen=True, slots=True)
class Element:
    """A piece of a text: its kind, and what stands inside its marks."""

    kind: Kind
    inner: str


def elements(text: str) -> Iterator[Element]:
    """A text cut into marked pieces and the text between them, in order; marks without their partner are text."""
    end = 0
    for found in _ELEMENT.finditer(text):
        if found.start() > end:
            yield Element("text", text[end : found.start()])
        yield Element(_KINDS[found[1]], found[2])
        end = found.end()
    if end < len(text):
        yield Element("text", text[end:])


def points(element: Element) -> Float[np.ndarray, "n 2"] | None:
    """The two corners of a box or the four of a quad, as written; `None` if it is neither or not well formed."""
    pattern = _POINTS.get(element.kind)
    found = pattern.fullmatch(element.inner.strip()) if pattern else None
    return None if found is None else np.array([float(number) for number in found.groups()]).reshape(-1, 2)


def parse(raw: str, size: tuple[int, int]) -> tuple[str, tuple[Region, ...]]:
    """An answer as clean text, and a region for each box and quad, in pixels of a picture of (height, width) `size`.

    In the clean text phrases stand without their marks and places are gone. Every region of a phrase carries it, and
    its span, so that `text[start:stop] == phrase`; a place without a phrase in front has none. Corners in the wrong
    order are put right, coordinates beyond the picture end at its edge; a place that is not well formed is left out.
    """
    text, regions = "", []
    phrase, span = "", None
    for element in elements(raw):
        corners = points(element)
        if element.kind == "ref":
            words = element.inner.strip()
            lead = element.inner[: len(element.inner) - len(element.inner.lstrip())] if text else ""
            start = len(text) + len(lead)
            text += lead + element.inner.strip()
            phrase, span = words, (start, start + len(words)) if words else None
        elif corners is not None:
            regions.append(placed(corners, size, phrase, span))
        elif element.kind == "text":
            plain = _MARK.sub("", element.inner)
            text += plain if text else plain.lstrip()
            # white space does not part a place from its phrase
            phrase, span = (phrase, span) if not plain.strip() else ("", None)
    return text.rstrip(), tuple(regions)


def placed(
    corners: Float[np.ndarray, "n 2"], size: tuple[int, int], phrase: str = "", span: tuple[int, int] | None = None
) -> Region:
    """The region of the two corners of a box or the four of a quad, on a picture of (height, width) `size`."""
    height, width = size
    points = np.minimum(corners, LARGEST) / LARGEST * np.array([width, height])
    box = np.concatenate([points.min(0), points.max(0)])
    return Region(phrase=phrase, span=span, box=box, quad=points if len(points) == 4 else None)


def place_text(region: Region, size: tuple[int, int]) -> str:
    """A region's place as marked text: its quad if it has one, else its box; nothing without either.

    What `parse` makes of it is at most half a thousandth of the side away.
    """
    if region.quad is not None:
        return marked("quad", _thousandths(region.quad, size))
    return "" if region.box is None else marked("box", _thousandths(region.box.reshape(2, 2), size))


def region_text(phrase: str, places: Sequence[Region], size: tuple[int, int]) -> str:
    """A phrase and where its things are: `<ref>phrase</ref>` and each place behind it."""
    named = f"<ref>{phrase}</ref>" if phrase else ""
    return named + "".join(place_text(place, size) for place in places)


def marked(kind: Literal["box", "quad"], corners: Num[np.ndarray, "n 2"]) -> str:
    """Corners in thousandths as marked text."""
    return f"<{kind}>{','.join(f'({int(x)},{int(y)})' for x, y in corners)}</{kind}>"


def _thousandths(corners: Float[np.ndarray, "n 2"], size: tuple[int, int]) -> Float[np.ndarray, "n 2"]:
    height, width = size
    numbers: np.ndarray = np.clip(np.rint(corners / np.array([width, height]) * LARGEST), 0, LARGEST)
    return numbers


def bare_places(raw: str) -> str | None:
    """An answer whose phrases and places stand in it without their marks, as `the sign(0,0),(499,999)`; None for one
    that places nothing.

    Source: what is left where Qwen-VL's special tokens are skipped, as its evaluation does.
    """
    has_places = any(points(element) is not None for element in elements(raw))
    return _MARK.sub("", raw).strip() if has_places else None


def without_places(text: str) -> str:
    """A caption with each `<ref>` and the boxes or quads behind it replaced by its phrase.

    Source: the regular expression that Qwen-VL's captions are cleaned with.
    """
    return re.sub(r"<ref>(.*?)</ref>(?:<box>.*?</box>)*(?:<quad>.*?</quad>)*", r"\1", text).strip()
