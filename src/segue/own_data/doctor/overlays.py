"""What was found, drawn: the image, the masks as they would be learned, polygons as they are written, and a caption."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from segue.data import shapes
from segue.errors import MediaError, SegueError
from segue.files import atomic_path
from segue.media import open_media
from segue.output.export import write_png
from segue.output.render import overlay
from segue.own_data.doctor import Examined, cross_row_checks
from segue.own_data.doctor.findings import KINDS, Finding
from segue.own_data.doctor.rows import Size, annotated, decoded, listed, on_annotated, outlines
from segue.own_data.finding import locate
from segue.own_data.folder import Row
from segue.own_data.formats.entries import Drawn
from segue.progress import UNWATCHED, Progress

_LEAST_WIDTH = 480  # of a picture, so that its caption can be read
_MOST_BEYOND = 2.0  # how many times as large as the image a picture may grow for what lies outside
_RED, _PAPER, _INK = (230, 30, 40), (40, 40, 44), (240, 240, 240)


def write(examined: Examined, out: Path, *, examples: int, progress: Progress = UNWATCHED) -> list[Path]:
    """Write `findings.jsonl` and one picture for each of the first `examples` findings of a kind; returns all paths.

    Older pictures of a doctor's in the folder are taken away. Findings without a row, or whose image cannot be read,
    have no picture. Progress is told in pictures.

    Raises: MediaError, if something cannot be written.
    """
    pictures = out / "pictures"
    try:
        pictures.mkdir(parents=True, exist_ok=True)
        for old in pictures.glob("*-*.png"):
            if old.stem.rpartition("-")[0] in KINDS:
                old.unlink()
    except OSError as error:
        raise MediaError(f"cannot write into {out}: {error.strerror}; choose another output folder") from error
    written = [out / "findings.jsonl"]
    with atomic_path(written[0]) as temporary:
        lines = [json.dumps(finding.plain(), ensure_ascii=False) for finding in examined.report.findings]
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")
    scales = {number: frame.size for _, frame in cross_row_checks.frames(examined.seen) for number in frame.rows}
    shown = {
        kind: [finding for finding in findings if finding.row is not None][:examples]
        for kind, findings in examined.report.by_kind().items()
    }
    progress.start(sum(map(len, shown.values())))
    for kind, findings in shown.items():
        for place, finding in enumerate(findings, start=1):
            row = examined.survey.rows[finding.row or 0]
            picture = picture_of(finding, row, scales.get(finding.row or 0))
            if picture is not None:
                written.append(pictures / f"{kind}-{place}.png")
                write_png(written[-1], picture)
            progress.step()
    return written


def picture_of(finding: Finding, row: Row, drawn_on: Size | None) -> UInt8[np.ndarray, "h w 3"] | None:
    """A finding drawn; None, if its image cannot be read. `drawn_on` is what its polygons are taken to be drawn on.

    Masks are filled; polygons are outlined in red where they are written, also beyond the image.
    """
    try:
        media = open_media(locate(row.folders, *row.entry.names))
        frames = annotated(row)
        pixels = next(decoded(media, frames[:1]))
    except (SegueError, OSError, StopIteration):
        return None
    canvas = on_annotated(row, media)
    drawn, _ = listed(row, canvas, frames[:1])
    if finding.object is not None:
        drawn = [one for one in drawn if one.number == finding.object or str(one.phrase) == finding.text] or drawn
    shown = [(mask, str(one.phrase)) for one in drawn if (mask := _mask(one, canvas.size, drawn_on)) is not None]
    if shown and canvas.size == media.size:
        pixels = overlay(pixels, np.stack([mask for mask, _ in shown]), [text for _, text in shown])
    lines = [points for one in drawn for points in outlines(one)]
    is_wrong = finding.kind in ("outside", "other_frame", "other_size")
    return _captioned(_outlined(pixels, lines if is_wrong or not shown else []), finding)


def _mask(one: Drawn, size: Size, drawn_on: Size | None) -> Bool[np.ndarray, "h w"] | None:
    """An object's mask where it belongs, if it has one."""
    try:
        if drawn_on is not None and one.polygons is not None:
            kept = [points.ravel().tolist() for points in outlines(one)]
            counts = shapes.polygons_mask(kept, size, drawn_on=drawn_on)
        else:
            counts = one.counts()
        return shapes.track([counts], [0], size).dense(0)
    except (SegueError, TypeError, ValueError, AttributeError, KeyError):
        return None


def _outlined(pixels: UInt8[np.ndarray, "h w 3"], lines: Sequence[np.ndarray]) -> Image.Image:
    """The image on paper large enough for the outlines, which are drawn in red."""
    height, width = pixels.shape[:2]
    reach = np.concatenate([*lines, [[0, 0]]]).max(axis=0)
    most = (width * _MOST_BEYOND, height * _MOST_BEYOND)
    room = [
        math.ceil(max(side, min(end, limit))) for side, end, limit in zip((width, height), reach, most, strict=True)
    ]
    picture = Image.new("RGB", (room[0], room[1]), _PAPER)
    picture.paste(Image.fromarray(pixels), (0, 0))
    pen = ImageDraw.Draw(picture)
    for points in lines:
        corners = [(float(x), float(y)) for x, y in np.clip(points, -1e6, 1e6)]
        pen.line([*corners, corners[0]], fill=_RED, width=max(1, round(min(room) / 300)))
    return picture


def _captioned(picture: Image.Image, finding: Finding) -> UInt8[np.ndarray, "h w 3"]:
    """The picture, enlarged if it is small, over what was found in words."""
    factor = max(1, math.ceil(_LEAST_WIDTH / picture.width))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    font = ImageFont.load_default(14)
    about = [f"row {finding.row}", finding.file, f"object {finding.object} {finding.text!r}"]
    words = [
        f"{finding.severity}: {KINDS[finding.kind].title}",
        ", ".join(about if finding.object is not None else about[:2]),
        finding.value,
        "" if "expected" in finding.value or not finding.expected else f"expected {finding.expected}",
    ]
    lines = [line for text in words if text for line in _wrapped(text, font, picture.width - 16)]
    whole_picture = Image.new("RGB", (picture.width, picture.height + 20 * len(lines) + 12), _PAPER)
    whole_picture.paste(picture, (0, 0))
    pen = ImageDraw.Draw(whole_picture)
    for number, line in enumerate(lines):
        pen.text((8, picture.height + 6 + 20 * number), line, font=font, fill=_INK)
    return np.array(whole_picture)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> Iterator[str]:
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            yield line
            longer = word
        line = longer
    yield line
