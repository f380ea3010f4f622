"""MeViS: a folder of frames a clip, `meta_expressions.json` and `mask_dict.json`; validation and test are `valid_u`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segue.data.ref_vos import SOURCES
from segue.synth.writers.base import Drawing, Format, Order, rle, scenes, write_frames, write_json

VARIANT = "mevis"


def write(root: Path, order: Order, drawings: Iterator[Drawing]) -> None:
    """Write the drawings below a folder.

    Raises: MediaError, if a file cannot be written.
    """
    home, source = root / "video_datas", SOURCES[VARIANT]["train" if order.split == "train" else "valid_u"]
    videos: dict[str, Any] = {}
    tracks: dict[str, list[dict[str, Any] | None]] = {}
    for scene in scenes(drawings):
        first = len(tracks)
        for masks in scene.visible:
            tracks[str(len(tracks))] = [rle(mask) if mask.any() else None for mask in masks]
        said = [(phrase.words[language], phrase.objects) for phrase in scene.phrases for language in order.languages]
        expressions = {
            str(number): {"exp": text, "obj_id": list(things), "anno_id": [first + thing for thing in things]}
            for number, (text, things) in enumerate(said)
        }
        names = write_frames(home / source.frames / scene.group, scene.frames)
        height, width = scene.size
        videos[scene.group] = {"frames": names, "height": height, "width": width, "expressions": expressions}
    write_json(home / source.expressions, {"videos": videos})
    write_json(home / source.masks, tracks)


FORMAT = Format(write, "clips", "ref_vos", (("variant", VARIANT),))
