"""Labels for training YOLO to segment (Ultralytics): a text file for each picture, a polygon for each object."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from segue.geometry.polygons import area_error, one_polygon
from segue.integrations.forms import Written, phrases_of, picture_files, seen
from segue.integrations.runs import Named


def write(answers: Sequence[Named], out: Path) -> Written:
    """`images/`, `labels/` and `data.yaml`; a class is a phrase. Parts and holes of an object hang together by lines
    without width, as the form has one polygon for each.
    """
    written, phrases = Written(), phrases_of(answers)
    for named in answers:
        for file_name, position in picture_files(named, out / "images"):
            lines = []
            for _, region, mask in seen(named, position):
                polygon = one_polygon(mask)
                written.area_errors.append(area_error([polygon], mask))
                shares = (polygon / (mask.shape[1], mask.shape[0])).ravel()
                lines.append(" ".join([str(phrases.index(region.phrase)), *(f"{share:.6f}" for share in shares)]))
            label = (out / "labels" / file_name).with_suffix(".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            written.pictures, written.objects = written.pictures + 1, written.objects + len(lines)
    content = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(phrases))}
    (out / "data.yaml").write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")
    written.notes.append("data.yaml names all pictures for training and for validation; split them before you train")
    return written
