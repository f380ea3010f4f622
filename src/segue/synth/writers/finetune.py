"""`annotations.json` and `images/`, Sa2VA's form for fine-tuning, with masks as run lengths.

An image is an item with all that is marked on it; phrases that fit nothing on it are a second item, a negative one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segue.synth.writers.base import Drawing, Format, Order, marked, rle, write_image, write_json


def write(root: Path, order: Order, drawings: Iterator[Drawing]) -> None:
    """Write the drawings below a folder.

    Raises: MediaError, if a file cannot be written.
    """
    items: list[dict[str, Any]] = []
    for one in (marked(drawing, order.languages) for drawing in drawings):
        name = f"{one.name}.png"
        write_image(root / "images" / name, one.pixels)
        about = {"image": name, "group": one.group, "split": order.folder_split}
        texts, masks = [text for text, _ in one.objects], [rle(mask) for _, mask in one.objects]
        items.append({**about, "size": list(one.pixels.shape[:2]), "text": texts, "mask": masks})
        if one.absent:
            items.append({**about, "text": list(one.absent), "mask": [], "negative": True})
    write_json(root / "annotations.json", items)


FORMAT = Format(write, "marks", "folder")
