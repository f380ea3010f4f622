"""Grounded captions in the form of GranD-f: a caption a still and language, and a mask for each phrase of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segue.data.gcg import PARTS
from segue.geometry.notation import parse_grounded
from segue.synth.scenes import Scene
from segue.synth.wording import Language
from segue.synth.writers.base import Drawing, Format, Order, rle, scenes, write_image, write_json

VARIANT = "grandf"


def write(root: Path, order: Order, drawings: Iterator[Drawing]) -> None:
    """Write the drawings below a folder.

    Raises: MediaError, if a file cannot be written.
    """
    _, annotations, images = PARTS[VARIANT]
    home = root / "glamm_data"
    records: list[dict[str, Any]] = []
    for scene in scenes(drawings):
        write_image(home / "images" / images / f"{scene.group}.png", scene.frames[0])
        records += [_record(scene, language) for language in order.languages]
    write_json(home / "annotations" / annotations, records)


def _record(scene: Scene, language: Language) -> dict[str, Any]:
    text, spoken = parse_grounded(scene.caption.words[language])
    groundings: dict[str, Any] = {}
    for region, thing in zip(spoken, scene.caption.objects, strict=True):
        # readers go by the positions; the phrase is a key and may come twice
        again = sum(key.split(" #")[0] == region.phrase for key in groundings)
        key = f"{region.phrase} #{again + 1}" if again else region.phrase
        groundings[key] = {"token_positives": list(region.span or ()), "rle_masks": [rle(scene.visible[thing, 0])]}
    height, width = scene.size
    about = {"file_name": f"{scene.group}.png", "image_id": scene.group, "height": height, "width": width}
    return {**about, "caption": text, "groundings": groundings}


FORMAT = Format(write, "stills", "gcg", (("variant", VARIANT),))
