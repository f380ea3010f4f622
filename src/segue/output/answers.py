"""An answer as JSON can hold it, and read back: the one form that files, evaluation and servers use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import DataError
from segue.types import Answer, MaskTrack, Media, Region, Usage

Json = dict[str, Any]


def to_dict(answer: Answer) -> Json:
    """A whole answer, masks as COCO run lengths, numbers exact. Logits are left out, and so are pixels of a medium that
    lies in no file.
    """
    return {
        "text": answer.text,
        "raw_text": answer.raw_text,
        "stop_reason": answer.stop_reason,
        "regions": [region_to_dict(region) for region in answer.regions],
        "media": None if answer.media is None else _media_to_dict(answer.media),
        "usage": asdict(answer.usage),
        "lineage": answer.lineage,
    }


def from_dict(stored: Mapping[str, Any]) -> Answer:
    """The answer that `to_dict` wrote; its medium is there if it lay in a file.

    Raises: DataError, if that does not have its form.
    """
    try:
        return Answer(
            stored["text"],
            tuple(region_from_dict(region) for region in stored["regions"]),
            stored["raw_text"],
            _media_from_dict(stored.get("media")),
            Usage(**stored.get("usage", {})),
            stored["stop_reason"],
            dict(stored.get("lineage", {})),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"a stored answer does not have its form ({type(error).__name__}: {error})") from error


def region_to_dict(region: Region) -> Json:
    """A region: boxes are x0 y0 x1 y1 in pixels, right and bottom exclusive; `scores` and `presence` say per frame."""
    return {
        "phrase": region.phrase,
        "span": None if region.span is None else list(region.span),
        "box": _listed(region.box),
        "quad": _listed(region.quad),
        "masks": track_to_dict(region.masks),
        "score": None if region.score is None else float(region.score),
        "scores": _listed(region.scores),
        "presence": _listed(region.presence),
    }


def region_from_dict(stored: Mapping[str, Any]) -> Region:
    """The region that `region_to_dict` wrote; parts that an older version did not write are absent.

    Raises: KeyError, TypeError, ValueError, IndexError, if that does not have its form.
    """
    span = stored["span"]
    return Region(
        stored["phrase"],
        None if span is None else (span[0], span[1]),
        _array(stored["box"]),
        track_from_dict(stored["masks"]),
        stored["score"],
        _array(stored.get("scores")),
        _array(stored.get("presence")),
        _array(stored.get("quad")),
    )


def track_to_dict(track: MaskTrack | None) -> Json | None:
    """Masks as run lengths: `size` is height and width, `index` the frame numbers, `rles` one string for each."""
    if track is None:
        return None
    return {"size": list(track.size), "index": track.index.tolist(), "rles": list(track.rles)}


def track_from_dict(stored: Mapping[str, Any] | None) -> MaskTrack | None:
    """The masks that `track_to_dict` wrote.

    Raises: KeyError, TypeError, ValueError, if that does not have its form.
    """
    if stored is None:
        return None
    height, width = stored["size"]
    return MaskTrack((height, width), np.array(stored["index"], np.int64), tuple(stored["rles"]))


def _listed(values: np.ndarray | None) -> list[Any] | None:
    return None if values is None else values.astype(np.float64).tolist()


def _array(values: list[Any] | None) -> np.ndarray | None:
    return None if values is None else np.array(values, np.float64)


def _media_to_dict(media: Media) -> Json:
    path = str(media.source) if isinstance(media.source, Path) else None
    return {"path": path, "kind": media.kind, "size": list(media.size), "count": media.count, "fps": media.fps}


def _media_from_dict(stored: Mapping[str, Any] | None) -> Media | None:
    if stored is None or stored["path"] is None:
        return None
    height, width = stored["size"]
    return Media(Path(stored["path"]), stored["kind"], (height, width), stored["count"], stored["fps"])
