"""COCO's annotation file beside its pictures: masks as run lengths, exact, with scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segue.geometry.masks import box_of
from segue.integrations.forms import Written, media_of, phrases_of, picture_files, seen
from segue.integrations.runs import Named
from segue.output.results import encode_json


def write(answers: Sequence[Named], out: Path) -> Written:
    """`annotations.json` and `images/`; a category is a phrase, and frames of a video are images."""
    written, phrases = Written(), phrases_of(answers)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for named in answers:
        height, width = media_of(named).size
        for file_name, position in picture_files(named, out / "images"):
            images.append({"id": len(images) + 1, "file_name": file_name, "height": height, "width": width})
            for number, region, mask in seen(named, position):
                box = box_of(mask)
                assert region.masks is not None and box is not None
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": len(images),
                        "category_id": phrases.index(region.phrase) + 1,
                        "object_id": number,
                        "segmentation": region.masks.rle(position),
                        "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                        "score": region.score,
                    }
                )
    categories = [{"id": number, "name": phrase} for number, phrase in enumerate(phrases, start=1)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (out / "annotations.json").write_bytes(encode_json(json.dumps(content, ensure_ascii=False)))
    written.pictures, written.objects = len(images), len(annotations)
    return written
