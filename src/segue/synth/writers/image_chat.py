"""LLaVA's conversations about images: all questions about a still are one conversation in each language."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segue.data.image_chat import CONVERSATIONS, IMAGES
from segue.synth.writers.base import Drawing, Format, Order, conversation, scenes, write_image, write_json


def write(root: Path, order: Order, drawings: Iterator[Drawing]) -> None:
    """Write the drawings below a folder.

    Raises: MediaError, if a file cannot be written.
    """
    records: list[dict[str, Any]] = []
    for scene in scenes(drawings):
        name = f"{scene.group}.png"
        write_image(root / IMAGES / name, scene.frames[0])
        for language in order.languages:
            talk = conversation(scene, language, "<image>")
            records.append({"id": f"{scene.group}-{language}", "image": name, "conversations": talk})
    write_json(root / CONVERSATIONS, records)


FORMAT = Format(write, "stills", "image_chat")
