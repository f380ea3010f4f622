"""An answer that can write itself down, and the one JSON form of answers: files, evaluation and servers use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segue import types
from segue.errors import DataError
from segue.geometry.masks import at_threshold, box_of
from segue.output import results
from segue.types import MaskTrack, Media, Region, TokenScore, Usage

if TYPE_CHECKING:
    import pandas
    import supervision

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Answer(types.Answer):
    """An answer that can write itself down, become what other tools take, and draw its masks anew."""

    def save(self, folder: str | Path, formats: Sequence[str] = ("png", "coco", "overlay")) -> None:
        """Write masks, overlay, scores and text to a new folder; `formats` as `segue segment --formats`.

        Raises: ConfigError, MediaError and OSError, as `segue.output.results.save` does.
        """
        results.save(self, Path(folder), formats)

    def at_threshold(self, threshold: float) -> Answer:
        """The same answer with a pixel in a mask where its probability is above `threshold`; boxes and lineage follow.

        Needs `Options(keep_logits=True)`. Nothing is computed but the masks.

        Raises: ConfigError, if the threshold is not in (0, 1); DataError, if the logits were not kept.
        """
        regions = tuple(_at_threshold(region, threshold) for region in self.regions)
        lineage = {**self.lineage, "request": {**self.lineage.get("request", {}), "threshold": threshold}}
        return replace(self, regions=regions, lineage=lineage)

    def to_dict(self) -> Json:
        """All of it as JSON can hold it, masks as COCO run lengths, numbers exact. Logits are left out, and so are
        pixels of a medium that lies in no file.
        """
        return {
            "text": self.text,
            "raw_text": self.raw_text,
            "stop_reason": self.stop_reason,
            "regions": [region_to_dict(region) for region in self.regions],
            "media": None if self.media is None else _media_to_dict(self.media),
            "usage": asdict(self.usage),
            "lineage": self.lineage,
            "scores": [asdict(score) for score in self.scores],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Answer:
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
                tuple(_score_from_dict(score) for score in stored.get("scores", ())),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataError(f"a stored answer does not have its form ({type(error).__name__}: {error})") from error

    def to_pandas(self) -> pandas.DataFrame:
        """A table with a row for each region, and for each frame of it that has a mask: `object` from 1, `phrase`,
        `frame`, the box `x0` to `y1` in pixels, right and bottom exclusive, `area` in pixels, `score`, `presence`.

        Raises: ConfigError, without pandas (the extra `pandas`).
        """
        from segue.output import conversions

        return conversions.to_pandas(self)

    def to_supervision(self, frame: int | None = None) -> supervision.Detections:
        """The objects on a frame, by its number in the source (the first that has masks, without one), as supervision
        takes them: masks, boxes, confidences; `class_name` is the phrase. Objects not seen there are left out.

        Raises: ConfigError, without supervision (the extra `supervision`); DataError, for a frame without masks.
        """
        from segue.output import conversions

        return conversions.to_supervision(self, frame)

    def _repr_html_(self) -> str:
        from segue.output import conversions

        return conversions.to_html(self)

    def _repr_png_(self) -> bytes | None:
        from segue.output import conversions

        return conversions.to_png(self)


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


def _score_from_dict(stored: Mapping[str, Any]) -> TokenScore:
    likeliest = tuple((text, logprob) for text, logprob in stored["likeliest"])
    return TokenScore(stored["text"], stored["logprob"], likeliest)


def _at_threshold(region: Region, threshold: float) -> Region:
    if region.masks is None:
        return region
    masks = at_threshold(region.masks, threshold)
    boxes = (box_of(masks.dense(position)) for position in range(len(masks)))
    return replace(region, masks=masks, box=next((box for box in boxes if box is not None), None))


def _listed(values: np.ndarray | None) -> list[Any] | None:
    return None if values is None else values.astype(np.float64).tolist()


def _array(values: list[Any] | None) -> np.ndarray | None:
    return None if values is None else np.array(values, np.float64)


def _media_to_dict(media: Media) -> Json:
    return {
        "path": str(media.source) if isinstance(media.source, Path) else None,
        "kind": media.kind,
        "size": list(media.size),
        "count": media.count,
        "fps": media.fps,
        "window": None if media.window is None else list(media.window),
        "notes": list(media.notes),
    }


def _media_from_dict(stored: Mapping[str, Any] | None) -> Media | None:
    if stored is None or stored["path"] is None:
        return None
    height, width = stored["size"]
    window, notes = stored.get("window"), tuple(stored.get("notes", ()))
    return Media(
        Path(stored["path"]),
        stored["kind"],
        (height, width),
        stored["count"],
        stored["fps"],
        None if window is None else (window[0], window[1]),
        notes,
    )
