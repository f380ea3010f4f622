"""Answers as JSON can hold them, with their masks, so that they can be scored again without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from segue import engine
from segue.errors import DataError
from segue.types import Answer, MaskTrack, Region

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredAnswer(Answer):
    """An answer that was read back; `scanned` has its masks at other thresholds, by threshold and region."""

    scanned: Mapping[float, Sequence[MaskTrack | None]] = field(default_factory=dict)

    def at_threshold(self, threshold: float) -> StoredAnswer:
        """The answer with the masks of another threshold, which must be one of those that were stored.

        Raises: DataError, naming them, if it is none of them.
        """
        if threshold not in self.scanned:
            known = ", ".join(map(str, self.scanned)) or "none"
            raise DataError(f"no masks were stored at threshold {threshold}; there are {known}. Ask the model again")
        tracks = self.scanned[threshold]
        return replace(
            self, regions=tuple(replace(one, masks=track) for one, track in zip(self.regions, tracks, strict=True))
        )


def to_json(answer: Answer, thresholds: Sequence[float] = ()) -> Json:
    """What scores read of an answer: its words and its regions with run-length masks, at further thresholds too.

    Raises: DataError, if there are thresholds and the answer has kept no logits.
    """
    stored: Json = {
        "text": answer.text,
        "raw_text": answer.raw_text,
        "stop_reason": answer.stop_reason,
        "regions": [_region(region) for region in answer.regions],
    }
    if thresholds:
        assert isinstance(answer, engine.Answer | StoredAnswer)
        stored["scanned"] = {
            str(threshold): [_track(region.masks) for region in answer.at_threshold(threshold).regions]
            for threshold in thresholds
        }
    return stored


def from_json(stored: Mapping[str, Any]) -> StoredAnswer:
    """The answer that `to_json` wrote, without its medium, usage and lineage.

    Raises: DataError, if that does not have its form.
    """
    try:
        return StoredAnswer(
            stored["text"],
            tuple(map(_read_region, stored["regions"])),
            stored["raw_text"],
            stop_reason=stored["stop_reason"],
            scanned={
                float(threshold): [_read_track(track) for track in tracks]
                for threshold, tracks in stored.get("scanned", {}).items()
            },
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"a stored answer does not have its form ({type(error).__name__}: {error})") from error


def _region(region: Region) -> Json:
    return {
        "phrase": region.phrase,
        "span": None if region.span is None else list(region.span),
        "box": None if region.box is None else [float(value) for value in region.box],
        "masks": _track(region.masks),
        "score": region.score,
    }


def _read_region(stored: Mapping[str, Any]) -> Region:
    return Region(
        stored["phrase"],
        None if stored["span"] is None else (stored["span"][0], stored["span"][1]),
        None if stored["box"] is None else np.array(stored["box"], np.float64),
        _read_track(stored["masks"]),
        stored["score"],
    )


def _track(track: MaskTrack | None) -> Json | None:
    if track is None:
        return None
    return {"size": list(track.size), "index": track.index.tolist(), "rles": list(track.rles)}


def _read_track(stored: Mapping[str, Any] | None) -> MaskTrack | None:
    if stored is None:
        return None
    height, width = stored["size"]
    return MaskTrack((height, width), np.array(stored["index"], np.int64), tuple(stored["rles"]))
