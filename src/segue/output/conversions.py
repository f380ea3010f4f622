"""Answers in the forms of other tools: tables of pandas, detections of supervision, what a notebook shows."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from segue.errors import ConfigError, DataError, SegueError
from segue.geometry.masks import box_of
from segue.output.render import overlay
from segue.output.results import replay
from segue.types import Answer, FrameMasks, ObjectsFound, Region

if TYPE_CHECKING:
    import pandas
    import supervision

_STYLED = '<td style="text-align: left">'


def to_pandas(answer: Answer) -> pandas.DataFrame:
    """A row for each region, and for each frame of it that has a mask; see `Answer.to_pandas`.

    Raises: ConfigError, without pandas.
    """
    try:
        import pandas
    except ImportError as error:
        raise ConfigError("to_pandas needs pandas: install segue[pandas]") from error
    columns = ["object", "phrase", "frame", "x0", "y0", "x1", "y1", "area", "score", "presence"]
    rows = [row for number, region in enumerate(answer.regions, start=1) for row in _rows(number, region)]
    return pandas.DataFrame(rows, columns=columns)


def to_supervision(answer: Answer, frame: int | None = None) -> supervision.Detections:
    """The objects on one frame; see `Answer.to_supervision`.

    Raises: ConfigError, without supervision; DataError, for a frame without masks.
    """
    try:
        import supervision
    except ImportError as error:
        raise ConfigError("to_supervision needs supervision: install segue[supervision]") from error
    tracks = [region.masks for region in answer.regions if region.masks is not None]
    known = [] if not tracks else tracks[0].index.tolist()
    wanted = known[0] if frame is None and known else 0 if frame is None else frame
    if known and wanted not in known:
        raise DataError(f"frame {wanted} has no masks; frames {known[0]} to {known[-1]} have")
    names = list(dict.fromkeys(region.phrase for region in answer.regions))
    found = [one for region in answer.regions if (one := _seen(region, wanted if known else None)) is not None]
    if not found:
        return supervision.Detections.empty()
    scores = [score for _, _, _, score in found]
    return supervision.Detections(
        xyxy=np.array([box for _, box, _, _ in found], np.float64),
        mask=np.stack([mask for _, _, mask, _ in found if mask is not None]) if known else None,
        confidence=None if None in scores else np.array(scores, np.float64),
        class_id=np.array([names.index(phrase) for phrase, *_ in found]),
        data={"class_name": np.array([phrase for phrase, *_ in found])},
    )


def to_png(answer: Answer) -> bytes | None:
    """The picture with the objects drawn on it, of a video the first frame that has masks; None without masks."""
    labels: tuple[str, ...] = ()
    for event in replay(answer):
        if isinstance(event, ObjectsFound):
            labels = tuple(region.phrase for region in event.regions)
        if isinstance(event, FrameMasks):
            from PIL import Image

            file = io.BytesIO()
            Image.fromarray(overlay(event.image, event.masks, labels)).save(file, "png")
            return file.getvalue()
    return None


def to_html(answer: Answer) -> str:
    """Text, picture and a table of the regions, for a notebook."""
    try:
        drawn = to_png(answer)
    except SegueError as error:  # its file is gone, which must not hide what was said
        picture = f"<p><i>{escape(str(error))}</i></p>"
    else:
        data = base64.b64encode(drawn or b"").decode("ascii")
        picture = f'<img style="max-width: 100%" src="data:image/png;base64,{data}">' if drawn else ""
    rows = "".join(
        f"<tr>{_STYLED}{escape(region.phrase)}</td><td>{_figure(region.score)}</td>"
        f"<td>{'' if region.box is None else ', '.join(f'{side:.0f}' for side in region.box)}</td></tr>"
        for region in answer.regions
    )
    table = f"<table><tr><th>phrase</th><th>score</th><th>box</th></tr>{rows}</table>" if rows else ""
    return f'<div><p style="white-space: pre-wrap">{escape(answer.text)}</p>{picture}{table}</div>'


def _rows(number: int, region: Region) -> Iterator[dict[str, Any]]:
    named = {"object": number, "phrase": region.phrase}
    if region.masks is None:
        yield {**named, **_sides(region.box), "score": region.score}
        return
    for position, frame in enumerate(region.masks.index.tolist()):
        mask = region.masks.dense(position)
        yield {
            **named,
            "frame": frame,
            **_sides(box_of(mask)),
            "area": int(mask.sum()),
            "score": region.score if region.scores is None else region.scores[position],
            "presence": None if region.presence is None else region.presence[position],
        }


def _sides(box: np.ndarray | None) -> dict[str, float]:
    return {} if box is None else dict(zip(("x0", "y0", "x1", "y1"), box.tolist(), strict=True))


def _seen(region: Region, frame: int | None) -> tuple[str, np.ndarray, np.ndarray | None, float | None] | None:
    """Phrase, box, mask and score of a region on a frame, or without one of its box alone; None if it is not there."""
    if frame is None:
        return None if region.box is None else (region.phrase, region.box, None, region.score)
    if region.masks is None or not (places := np.flatnonzero(region.masks.index == frame)).size:
        return None
    mask = region.masks.dense(int(places[0]))
    box = box_of(mask)
    score = region.score if region.scores is None else float(region.scores[places[0]])
    return None if box is None else (region.phrase, box, mask, score)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
