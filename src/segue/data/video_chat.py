"""Conversations about videos, in the form of Video-ChatGPT's and Chat-UniVi's.

Below the data root:

    video_datas/chat_univi/video_chat.json       the conversations
    video_datas/chat_univi/Activity_Videos/      the videos, named relative to this

The file is a list of {"id", "video", "conversations": [{"from": "human" | "gpt", "value": text}]}. Placeholders
(`<video>`, `<image>`) are taken out, and the video goes first. A video named `.mkv` may lie there as `.mp4`.

Source: Sa2VA's `Sa2VA04VideoQA`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.annotation_io import field, find_file, open_sized, read_list, require, require_train
from segue.data.base import Rows
from segue.data.dialogue import dialogue, recorded_turns
from segue.types import Sample

CONVERSATIONS = "video_datas/chat_univi/video_chat.json"
VIDEOS = "video_datas/chat_univi/Activity_Videos"


def load(root: Path, split: str, *, conversations: str = CONVERSATIONS, videos: str = VIDEOS, frames: int = 5) -> Rows:
    """A row per conversation; its sample shows `frames` frames, one drawn from each of so many equal parts.

    A video of no more frames is shown whole. The paths lie below the root; the split is train.

    Raises: ConfigError, DataError.
    """
    require_train(split, "video_chat")
    require(root, [conversations, videos], "a JSON list of conversations and a folder of videos")
    rows = list(enumerate(read_list(root / conversations)))
    name = f"video_chat/{split}"
    return Rows(name, rows, partial(_sample, source=name, videos=root / videos, num_frames=frames))


def _sample(row: tuple[int, Any], rng: np.random.Generator, *, source: str, videos: Path, num_frames: int) -> Sample:
    number, record = row
    video = field(record, "video", str, "the row")
    media = open_sized(find_file([videos], video, f"{video.removesuffix('.mkv')}.mp4"))
    turns = recorded_turns(field(record, "conversations", list, "the row"), _without_placeholders)
    shown = _one_of_each_part(rng, media.count, num_frames)
    name = f"{number}-{record.get('id', '')}"
    return Sample(name, "chat", dialogue(turns, media), frames=shown, source=source, group=video)


def _without_placeholders(text: str) -> str:
    return text.replace("<video>", "").replace("<image>", "")


def _one_of_each_part(rng: np.random.Generator, count: int, parts: int) -> tuple[int, ...]:
    if count <= parts:
        return tuple(range(count))
    edges = np.linspace(0, count, parts + 1).astype(int)
    return tuple(int(number) for number in rng.integers(edges[:-1], edges[1:]))
