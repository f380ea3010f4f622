"""COCO JSON, `instances.json` and `images/`: each object has its phrase as "text", and all are of one category.

Everything lies in `train/`, `val/` or `test/`. Images of a patient are in a folder of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from segue.geometry.masks import box_of
from segue.synth.writers.base import Drawing, Format, Order, marked, rle, write_image, write_json


def write(root: Path, order: Order, drawings: Iterator[Drawing]) -> None:
    """Write the drawings below a folder.

    Raises: MediaError, if a file cannot be written.
    """
    base = root / order.folder_split
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, one in enumerate((marked(drawing, order.languages) for drawing in drawings), start=1):
        name, (height, width) = one.path, one.pixels.shape[:2]
        write_image(base / "images" / name, one.pixels)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for text, mask in one.objects:
            about = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "text": text, "iscrowd": 0}
            annotations.append({**about, "segmentation": rle(mask), "area": int(mask.sum()), "bbox": _box(mask)})
    categories = [{"id": 1, "name": "thing"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(base / "instances.json", content)


def _box(mask: Bool[np.ndarray, "h w"]) -> list[float]:
    """Left, top, width, height."""
    box = box_of(mask)
    assert box is not None, "what is marked is seen"
    left, top, right, bottom = box.tolist()
    return [left, top, right - left, bottom - top]


FORMAT = Format(write, "marks", "folder")
