"""`/v1/files/ID/overlay`: a clip with regions drawn on it, as MP4."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse
from jaxtyping import Bool
from pydantic import Field, model_validator
from starlette.background import BackgroundTask

from segue.errors import DataError
from segue.geometry.masks import validate_rle
from segue.output.export import OverlayWriter
from segue.output.render import Colour, colour_of, overlay
from segue.serve.answers import while_connected
from segue.serve.context import Context
from segue.serve.errors import NO_RETRY, ApiError, refusal
from segue.serve.schema import Closed, Items, Open
from segue.types import MaskTrack, Media

MOST_MASKS = 100_000
"""On all frames of a clip; they are counted before any of them is looked at."""


class DrawnFrame(Open):
    """A mask on one frame."""

    index: int = Field(ge=0)
    rle: dict[str, Any]


class DrawnRegion(Open):
    """An object, as answers tell it; with a name and a colour, if it is to have others."""

    frames: Items[DrawnFrame]
    phrase: str = Field("", max_length=1000)
    name: str | None = Field(None, max_length=1000)
    colour: str | None = Field(None, pattern=r"^#[0-9a-fA-F]{6}$")


class OverlayRequest(Closed):
    """What to draw."""

    regions: Items[DrawnRegion]

    @model_validator(mode="before")
    @classmethod
    def _few_masks(cls, given: Any) -> Any:
        regions = given.get("regions") if isinstance(given, dict) else None
        frames = [one.get("frames") for one in regions if isinstance(one, dict)] if isinstance(regions, list) else []
        count = sum(len(one) for one in frames if isinstance(one, list))
        if count > MOST_MASKS:
            raise refusal("limit_exceeded", f"{count:,} masks in all; at most {MOST_MASKS:,} are drawn", "regions")
        return given


class Drawing:
    """A clip on its way into a file, frame by frame, until it is closed."""

    def __init__(self, media: Media, regions: list[DrawnRegion], seconds: float):
        self._media, self._end, self._is_closed = media, time.monotonic() + seconds, False
        self._tracks = [_checked(region, media) for region in regions]
        self._labels = [region.phrase if region.name is None else region.name for region in regions]
        self._colours = [_colour(region, number) for number, region in enumerate(regions)]

    def close(self) -> None:
        """Draw no more."""
        self._is_closed = True

    def write(self, path: Path) -> None:
        """Write all of it.

        Raises: ApiError, when the deadline is over, or nobody waits any more.
        """
        pixels = self._media.source
        assert isinstance(pixels, np.ndarray)
        with OverlayWriter(path, self._media.fps or 10.0, self._media.size) as writer:
            for number, frame in enumerate(pixels):
                if self._is_closed or time.monotonic() > self._end:
                    raise ApiError(504, "not drawn in time", code="deadline_exceeded", headers=NO_RETRY)
                masks = [_mask(track, number, self._media.size) for track in self._tracks]
                drawn = overlay(frame, np.stack(masks), self._labels, self._colours) if masks else frame
                seconds = self._media.seconds
                writer.write(drawn, float("nan") if seconds is None else float(seconds[number]))
        if self._is_closed:
            path.unlink()


def add_routes(app: FastAPI, context: Context) -> None:
    """The route."""
    one_at_a_time = asyncio.Semaphore(1)

    @app.post("/v1/files/{file_id}/overlay")
    async def draw(file_id: str, body: OverlayRequest, request: Request) -> FileResponse:
        """A clip that was uploaded with regions on it."""
        if len(body.regions) > context.limits.objects:
            message = f"{len(body.regions)} regions; at most {context.limits.objects} are drawn"
            raise ApiError(400, message, code="limit_exceeded", param="regions")
        file = context.files.get(request.state.client, file_id)
        media = await context.open_kept(file, file.about["media"]["kind"], "file_id")
        if media.kind == "image":
            raise ApiError(400, "the file is an image; clips are drawn here", code="invalid_media", param="file_id")
        drawing = await asyncio.to_thread(Drawing, media, body.regions, context.limits.deadline_seconds)
        path = context.files.path(file).with_name(f"{secrets.token_hex(8)}.mp4")

        async def write() -> None:
            async with one_at_a_time:
                await asyncio.to_thread(drawing.write, path)

        await while_connected(request, drawing, write())
        return FileResponse(path, media_type="video/mp4", background=BackgroundTask(path.unlink))


def _checked(region: DrawnRegion, media: Media) -> MaskTrack:
    """The masks of a region, each of the size of the medium and on a frame that there is.

    Raises: DataError, LimitError.
    """
    frames = {frame.index: validate_rle(frame.rle) for frame in region.frames}
    for index, (size, _) in frames.items():
        if size != media.size or index >= media.count:
            raise DataError(
                f"a mask of {size} (height, width) on frame {index} does not fit a clip of {media.count} frames of "
                f"{media.size}"
            )
    counts = tuple(frames[index][1] for index in sorted(frames))
    return MaskTrack(media.size, np.array(sorted(frames), np.int64), counts)


def _mask(track: MaskTrack, number: int, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    place = int(np.searchsorted(track.index, number))
    is_there = place < len(track) and track.index[place] == number
    return track.dense(place) if is_there else np.zeros(size, bool)


def _colour(region: DrawnRegion, number: int) -> Colour:
    if region.colour is None:
        return colour_of(number)
    red, green, blue = bytes.fromhex(region.colour[1:])
    return red, green, blue
