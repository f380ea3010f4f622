"""What `segue segment` has found, read back as answers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from segue.data import shapes
from segue.errors import ConfigError, DataError
from segue.jobs import manifest
from segue.output import results
from segue.output.answers import Answer
from segue.types import Media, Region

Named = tuple[str, Answer]
"""An answer, and a name for files about it that no other answer of the run has."""


def read(run: Path) -> Iterator[Named]:
    """The answers of a run, in the order of its manifest; what was asked of one source at different times is one.

    `lineage` of each has all `phrases` that were asked for, in their order. Masks come from `masks.json`.

    Raises: ConfigError, if the folder is none of `segue segment`, or was written without masks; DataError, if a file in
    it is damaged.
    """
    if not (run / manifest.NAME).is_file():
        raise ConfigError(f"{run} has no {manifest.NAME}; give the -o of a `segue segment` that has ended")
    by_source: dict[str, list[str]] = defaultdict(list)
    for record in manifest.Manifest(run).records.values():
        if record["status"] == "ok":
            by_source[record["source"]].append(record["folder"])
    if not by_source:
        raise ConfigError(f"{run} holds no result; see the errors in its {manifest.NAME}")
    for folders in by_source.values():
        yield folders[0], _joined([_read(run / name) for name in folders])


def _joined(answers: Sequence[Answer]) -> Answer:
    phrases = [phrase for answer in answers for phrase in answer.lineage["phrases"]]
    regions = tuple(region for answer in answers for region in answer.regions)
    return replace(answers[0], regions=regions, lineage={**answers[0].lineage, "phrases": phrases})


def _read(folder: Path) -> Answer:
    result = manifest.read_result(folder)
    if result is None:
        raise DataError(f"{folder} is listed in the manifest and holds no result; run `segue segment` again")
    try:
        return _answer(folder, result)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(
            f"{folder / results.RESULT} does not have its form ({error}); run `segue segment` again"
        ) from error


def _answer(folder: Path, result: Mapping[str, Any]) -> Answer:
    if "coco" not in result["settings"]["formats"]:
        raise ConfigError(f"{folder} was written without masks.json; run `segue segment` again with coco in --formats")
    source = result["source"]
    window = source.get("window")
    media = Media(
        Path(source["path"]),
        source["kind"],
        (source["height"], source["width"]),
        source["frames"],
        source["fps"],
        None if window is None else (window[0], window[1]),
    )
    masks = _masks(folder / "masks.json", media, result["frames"])
    regions = tuple(_region(row, masks.get(row["id"]), result["frames"], media) for row in result["regions"])
    lineage = result["lineage"] | {"phrases": result["settings"].get("phrases", [])}
    return Answer(result["text"], regions, result["raw_text"], media, lineage=lineage)


def _masks(path: Path, media: Media, frames: Sequence[int]) -> dict[int, dict[int, str]]:
    """Of each object, by its number, its mask on each frame that it is seen on."""
    if not path.exists():  # all that was found are places in words
        return {}
    found: dict[int, dict[int, str]] = defaultdict(dict)
    try:
        for row in json.loads(path.read_bytes())["annotations"]:
            found[row["object_id"]][row["image_id"]] = shapes.rle_mask(row["segmentation"], media.size)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not have its form ({error}); run `segue segment` again") from error
    nothing = shapes.empty(media.size)
    return {number: {frame: seen.get(frame, nothing) for frame in frames} for number, seen in found.items()}


def _region(row: Mapping[str, Any], masks: Mapping[int, str] | None, frames: Sequence[int], media: Media) -> Region:
    def numbers(name: str) -> np.ndarray | None:
        return None if row[name] is None else np.array([np.nan if one is None else one for one in row[name]], float)

    is_place = "is_found" not in row  # said in words, without a mask
    counts = [shapes.empty(media.size)] * len(frames) if masks is None else list(masks.values())
    return Region(
        row["phrase"],
        None if row["span"] is None else tuple(row["span"]),
        numbers("box"),
        None if is_place else shapes.track(counts, frames, media.size),
        row["score"],
        numbers("scores"),
        numbers("presence"),
    )
