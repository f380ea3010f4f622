"""What is said in a video and when, from SubRip files (.srt)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segue.errors import DataError

_TIMES = re.compile(r"\s*(\d+):(\d\d):(\d\d)[,.](\d{1,3})\s*-->\s*(\d+):(\d\d):(\d\d)[,.](\d{1,3})")


@dataclass(frozen=True, slots=True)
class Subtitle:
    """Words that are shown from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def read(path: Path) -> list[Subtitle]:
    """The lines of a file in its order; line breaks within one are spaces.

    Raises: DataError, if the file cannot be read or holds no times.
    """
    try:
        blocks = re.split(r"\n\s*\n", path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not text in UTF-8: {error}; convert it") from error
    lines = []
    for block in blocks:
        rows = block.strip().split("\n")
        place = next((number for number, row in enumerate(rows) if _TIMES.match(row)), None)
        if place is not None:
            lines.append(Subtitle(*_seconds(rows[place]), " ".join(row.strip() for row in rows[place + 1 :]).strip()))
    if not lines and any(block.strip() for block in blocks):
        raise DataError(f"{path} has no times such as 00:00:01,000 --> 00:00:02,500; expected a SubRip file")
    return lines


def said_at(lines: Sequence[Subtitle], seconds: Sequence[float]) -> list[str]:
    """What is shown at each of these times: the first line that has begun and not ended. Silence gives nothing."""
    found = (next((line.text for line in lines if line.start < second < line.end), "") for second in seconds)
    return [text for text in found if text]


def _seconds(row: str) -> tuple[float, float]:
    times = _TIMES.match(row)
    assert times is not None
    numbers = [int(part) for part in times.groups()]
    first, second = (
        3600 * hours + 60 * minutes + seconds + int(times[last]) / 10 ** len(times[last])
        for (hours, minutes, seconds), last in ((numbers[:3], 4), (numbers[4:7], 8))
    )
    return first, second
