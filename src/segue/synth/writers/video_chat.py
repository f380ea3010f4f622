"""Conversations about videos: all questions about a clip, which is an MP4, are one conversation in each language."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segue.data.video_chat import CONVERSATIONS, VIDEOS
from segue.synth.writers.base import Drawing, Format, Order, conversation, scenes, write_json, write_video


def write(root: Path, order: Order, drawings: Iterator[Drawing]) -> None:
    """Write the drawings below a folder.

    Raises: MediaError, if a file cannot be written.
    """
    records: list[dict[str, Any]] = []
    for scene in scenes(drawings):
        name = f"{scene.group}.mp4"
        write_video(root / VIDEOS / name, scene.frames)
        for language in order.languages:
            talk = conversation(scene, language, "<video>")
            records.append({"id": f"{scene.group}-{language}", "video": name, "conversations": talk})
    write_json(root / CONVERSATIONS, records)


FORMAT = Format(write, "clips", "video_chat", even=True)
