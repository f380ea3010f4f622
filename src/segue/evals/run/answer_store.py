"""Answers as JSON can hold them, with their masks, so that they can be scored again without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from segue.errors import DataError
from segue.output import answers
from segue.output.answers import Json
from segue.types import Answer, MaskTrack


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
        "regions": [answers.region_to_dict(region) for region in answer.regions],
    }
    if thresholds:
        assert isinstance(answer, answers.Answer | StoredAnswer)
        stored["scanned"] = {
            str(threshold): [answers.track_to_dict(region.masks) for region in answer.at_threshold(threshold).regions]
            for threshold in thresholds
        }
    return stored


def from_json(stored: Mapping[str, Any]) -> StoredAnswer:
    """The answer that `to_json` wrote, without its medium, usage and lineage.

    Raises: DataError, if that does not have its form.
    """
    read = answers.Answer.from_dict(stored)
    try:
        scanned = {
            float(threshold): [answers.track_from_dict(track) for track in tracks]
            for threshold, tracks in stored.get("scanned", {}).items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"a stored answer does not have its form ({type(error).__name__}: {error})") from error
    return StoredAnswer(read.text, read.regions, read.raw_text, stop_reason=read.stop_reason, scanned=scanned)
