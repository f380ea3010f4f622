"""Pages that need nothing beside them: tables, curves and pictures as HTML."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from segue.output.render import overlay

WIDTH, HEIGHT, MARGIN = 640, 220, 52
COLOURS = ("#1490ff", "#d9730d", "#c4127a", "#4b8b00", "#6a00e8", "#8a3d12")
SIDE = 320
"""Longest side of each part of a picture, in pixels."""
GAP = 8
"""Width of the white line between the parts, in pixels."""
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:left;vertical-align:top}"
    "pre{background:#f5f5f5;padding:.8rem;overflow-x:auto;font-size:13px}svg{max-width:100%;height:auto}"
    ".charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(25rem,100%),1fr));gap:0 2rem}"
    ".rows{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(18rem,100%),1fr));gap:1rem}figure{margin:0}"
    "img{width:100%}figcaption{font-size:13px}"
    "@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}pre{background:#242424}}"
)
Points = Sequence[tuple[float, float]]


def page(heading: str, title: str, parts: Sequence[str]) -> str:
    """A whole page; `parts` are HTML, heading and title plain text."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(heading)}</h1>{''.join(parts)}</html>\n"
    )


def table(facts: Mapping[str, str]) -> str:
    """Names and what is said of them, in plain text."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return f"<table>{rows}</table>"


def chart(title: str, curves: Mapping[str, Points], *, axis: str = "step") -> str:
    """Curves over what `axis` names as one picture; nothing, where there are no points."""
    drawn = {name: points for name, points in curves.items() if points}
    if not drawn:
        return ""
    places = [point for points in drawn.values() for point in points]
    left, right = min(x for x, _ in places), max(x for x, _ in places)
    top, bottom = _ceiling(max(y for _, y in places)), min(0.0, *(y for _, y in places))

    def at(x: float, y: float) -> str:
        across = (x - left) / (right - left or 1) * (WIDTH - MARGIN - 8) + MARGIN
        down = (top - y) / (top - bottom or 1) * (HEIGHT - 40) + 10
        return f"{across:.1f},{down:.1f}"

    lines_drawn, names = [], []
    for colour, (name, points) in zip(cycle(COLOURS), drawn.items(), strict=False):  # colours never end
        path = " ".join(at(*point) for point in points)
        dots = "".join(_dot(at(*point), colour) for point in points) if len(points) < 60 else ""
        lines_drawn.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{path}"/>{dots}')
        names.append(f'<span style="color:{colour}">&#9632;</span> {escape(name)}')
    ticks = [bottom + share * (top - bottom) for share in (0, 0.25, 0.5, 0.75, 1)]
    axes = "".join(_line(float(at(left, tick).split(",")[1]), f"{tick:.3g}") for tick in ticks)
    axes += (
        f'<text x="{MARGIN}" y="{HEIGHT - 8}">{axis} {left:g}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 8}" text-anchor="end">{right:g}</text>'
    )
    return (
        f"<section><h2>{escape(title)}</h2><p>{' &nbsp; '.join(names)}</p>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'aria-label="{escape(title)} over {escape(axis)}" '
        f'font-size="12" fill="currentColor">{axes}{"".join(lines_drawn)}</svg></section>'
    )


def _ceiling(value: float) -> float:
    """A round number not below a value; 1 for one that is not above 0."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next((digit * power for digit in (1, 2, 4, 6, 8, 10) if digit * power >= value), value)


def _line(y: float, label: str) -> str:
    """A line across the chart at a round number."""
    return (
        f'<text x="0" y="{y + 4:.1f}">{label}</text>'
        f'<line x1="{MARGIN}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" stroke-opacity="0.15"/>'
    )


def _dot(place: str, colour: str) -> str:
    x, y = place.split(",")
    return f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>'


def gallery(shown: Sequence[tuple[str, str]]) -> str:
    """Pictures side by side, each an address, empty for none, and the plain text below it."""
    figures = (
        "<figure>"
        + (f'<img src="{source}" alt="">' if source else "")
        + f"<figcaption>{escape(text)}</figcaption></figure>"
        for source, text in shown
    )
    return f'<div class="rows">{"".join(figures)}</div>'


def picture(parts: Sequence[UInt8[np.ndarray, "h _ 3"]]) -> str:
    """Images of one height side by side, white between them, as an address that can stand in a page (`data:`)."""
    gap = np.full((len(parts[0]), GAP, 3), 255, np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.concatenate([piece for part in parts for piece in (gap, part)][1:], axis=1)).save(
        file, "JPEG", quality=85
    )
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def marked(pixels: UInt8[np.ndarray, "h w 3"], masks: Sequence[Bool[np.ndarray, "_ _"]]) -> UInt8[np.ndarray, "a b 3"]:
    """The image with masks on it, which may be of another size, brought to `SIDE`."""
    scale = SIDE / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    image = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    fitted = [np.asarray(Image.fromarray(mask).resize(size)) for mask in masks]
    return overlay(image, np.stack(fitted), [""] * len(fitted)) if fitted else image
