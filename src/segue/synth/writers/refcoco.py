"""RefCOCO: `instances.json`, the refs as JSON, and images; every phrase that means one thing is a sentence about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segue.data.refcoco import VARIANTS
from segue.synth.scenes import Scene
from segue.synth.writers.base import Drawing, Format, Order, rle, scenes, write_image, write_json

VARIANT = "refcoco"
SPLITS = {"train": "train", "validation": "val", "test": "testA"}


def write(root: Path, order: Order, drawings: Iterator[Drawing]) -> None:
    """Write the drawings below a folder.

    Raises: MediaError, if a file cannot be written.
    """
    home = root / "ref_seg" / VARIANT
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes(drawings), start=1):
        name, (height, width) = f"{scene.group}.png", scene.size
        write_image(home / "coco2014/train2014" / name, scene.frames[0])
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for thing, sentences in _sentences(scene, order).items():
            mask = scene.visible[thing, 0]
            key = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
            annotations.append({**key, "area": int(mask.sum()), "segmentation": rle(mask)})
            ref = {"ref_id": len(refs), "ann_id": key["id"], "image_id": number, "category_id": 1}
            refs.append({**ref, "split": SPLITS[order.split], "sentences": sentences})
    categories = [{"id": 1, "name": "thing"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(home / "instances.json", content)
    write_json(home / f"{VARIANTS[VARIANT]}.json", refs)


def _sentences(scene: Scene, order: Order) -> dict[int, list[dict[str, str]]]:
    """What is said of each thing that something is said of alone."""
    said: dict[int, list[dict[str, str]]] = {}
    for phrase in scene.phrases:
        if len(phrase.objects) == 1:
            words = [phrase.words[language] for language in order.languages]
            said.setdefault(phrase.objects[0], []).extend({"raw": text, "sent": text} for text in words)
    return said


FORMAT = Format(write, "stills", "refcoco", (("variant", VARIANT),))
