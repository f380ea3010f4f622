"""Ref-SAV: `Ref-SAV.json`, and in `sam_v_full/` a video and its masklets, on every fourth frame, for each clip.

A phrase is the description of an object, which is all that the phrase means. Videos are MP4: their pixels are almost
those of the clip, the masks exactly its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segue.data.ref_sav import LAYOUT, STEP
from segue.synth.writers.base import Drawing, Format, Order, rle, scenes, union, write_json, write_video


def write(root: Path, order: Order, drawings: Iterator[Drawing]) -> None:
    """Write the drawings below a folder.

    Raises: MediaError, if a file cannot be written.
    """
    descriptions, home = LAYOUT["train"]
    videos: dict[str, Any] = {}
    for scene in scenes(drawings):
        video, masklets = f"synth/{scene.group}.mp4", f"synth/{scene.group}_manual.json"
        write_video(root / home / video, scene.frames)
        meant = [phrase for phrase in scene.phrases if phrase.objects]
        seen = [union(scene, phrase.objects) for phrase in meant for _ in order.languages]
        annotated = range(0, len(scene.frames), STEP)
        write_json(root / home / masklets, {"masklet": [[rle(masks[frame]) for masks in seen] for frame in annotated]})
        texts = [phrase.words[language] for phrase in meant for language in order.languages]
        objects = {str(number): {"formated": text, "short_caps": [text]} for number, text in enumerate(texts)}
        videos[scene.group] = {"video_path": video, "anno_path": masklets, "objects": objects}
    write_json(root / descriptions, videos)


FORMAT = Format(write, "clips", "ref_sav", even=True, least_frames=2 * STEP)
