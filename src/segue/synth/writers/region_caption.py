"""Descriptions of marked regions in the form of Osprey: a still's things, each with its mask and what it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.region_caption import IMAGES, VARIANTS
from segue.synth.samples import region_sample
from segue.synth.scenes import Scene
from segue.synth.wording import Language
from segue.synth.writers.base import Drawing, Format, Order, rle, scenes, write_image, write_json

VARIANT = "description"


def write(root: Path, order: Order, drawings: Iterator[Drawing]) -> None:
    """Write the drawings below a folder.

    Raises: MediaError, if a file cannot be written.
    """
    home = root / "osprey-724k"
    records: list[dict[str, Any]] = []
    for scene in scenes(drawings):
        write_image(home / "coco" / IMAGES[0] / f"{scene.group}.png", scene.frames[0])
        records += [_record(scene, language) for language in order.languages]
    write_json(home / "Osprey-724K" / VARIANTS[VARIANT], records)


def _record(scene: Scene, language: Language) -> dict[str, Any]:
    height, width = scene.size
    return {
        "file_name": f"{scene.group}.png",
        "height": height,
        "width": width,
        "annotation": [{"segmentation": rle(masks[0])} for masks in scene.visible],
        "description": [
            f"<region{number + 1}>: {description(scene, number, language)}" for number in range(len(scene.things))
        ],
    }


def description(scene: Scene, number: int, language: Language) -> str:
    """What is said of a thing; the same thing has the same words always."""
    sample = region_sample(scene, number, np.random.default_rng(number), language=language)
    return sample.messages[-1].text


FORMAT = Format(write, "stills", "region_caption", (("variant", VARIANT),))
