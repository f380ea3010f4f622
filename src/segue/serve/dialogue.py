"""From the messages of a request to a dialogue with its media decoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segue.geometry.masks import validate_rle
from segue.media.sampling import choose
from segue.serve.context import Context
from segue.serve.errors import ApiError
from segue.serve.schema import Answering, ChatMessage, FilePart, ImagePart, RegionPart, TextPart, VideoPart
from segue.serve.settings import Limits
from segue.serve.storage import named_id
from segue.types import MaskTrack, Media, MediaKind, Message, Part, Region


async def read(messages: Sequence[ChatMessage], context: Context, client: str) -> list[Message]:
    """A dialogue with its media decoded; everything is counted before anything is decoded.

    Raises: ApiError; DataError and LimitError, for the mask of a region that is none.
    """
    limits = context.limits
    letters = sum(len(part.text) for one in messages for part in one.parts if isinstance(part, TextPart))
    regions = sum(isinstance(part, RegionPart) for one in messages for part in one.parts)
    texts = sum(isinstance(part, TextPart) for one in messages for part in one.parts)
    shown = sum(len(one.parts) for one in messages) - texts - regions
    for name, count, most in (
        ("messages", len(messages), limits.messages),
        ("letters", letters, limits.letters),
        ("images and videos", shown, limits.media),
        ("regions", regions, limits.regions),
    ):
        if count > most:
            message = f"{count:,} {name}; at most {most:,} are allowed"
            raise ApiError(400, message, code="limit_exceeded", param="messages")
    return [await _turn(message, number, context, client) for number, message in enumerate(messages)]


def check_frames(body: Answering, shown: Sequence[Media], limits: Limits) -> None:
    """Refuse more frames of a video than a client may have looked at.

    Raises: ApiError; ConfigError, for a plan that no video can follow.
    """
    for video in (medium for medium in shown if medium.kind == "video"):
        count = 0 if body.frames == "auto" else len(choose(body.frames, video.count, video.fps))
        if count > limits.frames_shown:
            message = f"frames {body.frames!r} are {count} of this video; at most {limits.frames_shown} are looked at"
            raise ApiError(400, message, code="limit_exceeded", param="frames")
        if body.probabilities and video.count > limits.frames_with_probabilities:
            message = f"probabilities are told of videos up to {limits.frames_with_probabilities} frames"
            raise ApiError(400, message, code="limit_exceeded", param="probabilities")


async def _turn(message: ChatMessage, number: int, context: Context, client: str) -> Message:
    role = "system" if message.role == "developer" else message.role
    parts: list[Part] = []
    for place, part in enumerate(message.parts):
        param = f"messages.{number}.content.{place}"
        if isinstance(part, TextPart):
            parts.append(part.text)
        elif role != "user":
            raise ApiError(400, "only users show images, videos and regions", param=param)
        elif isinstance(part, RegionPart):
            parts.append(_region(part))
        else:
            parts.append(await _medium(part, param, context, client))
    return Message(role, tuple(_laid_out(parts)))


def _laid_out(parts: Sequence[Part]) -> list[Part]:
    """Parts as the models were trained with: one medium stands first, whatever stands first in the request, and each is
    on a line of its own.
    """
    media = [part for part in parts if isinstance(part, Media)]
    if len(media) == 1:
        texts = [part for part in parts if isinstance(part, str)]
        return [media[0], *(part for part in parts if isinstance(part, Region)), "\n" + "\n".join(texts)]
    laid: list[Part] = []
    for part in parts:
        laid += [part, "\n"] if isinstance(part, Media) else [part]
    return laid


def _region(part: RegionPart) -> Region:
    if part.box is not None:
        return Region(part.phrase, box=np.array(part.box))
    size, counts = validate_rle(part.rle)
    return Region(part.phrase, masks=MaskTrack(size, np.array([0]), (counts,)))


async def _medium(part: ImagePart | VideoPart | FilePart, param: str, context: Context, client: str) -> Media:
    if isinstance(part, FilePart):
        kept = context.files.get(client, part.file.file_id, param=param)
        return await context.open_kept(kept, kept.about["media"]["kind"], param)
    given = part.image_url if isinstance(part, ImagePart) else part.video_url
    expected: MediaKind = "image" if isinstance(part, ImagePart) else "video"
    name = named_id(client, part.uuid or "")
    if given is None:
        return await context.open_kept(context.files.get(client, name, "named", param), expected, param)
    if part.uuid is None:
        return await context.open(given, expected, param, client)
    with context.files.sending() as path:
        sent = await context.send(given, expected, param, client, path)
        media = await context.media.from_file(path, sent.digest, expected, param)
        context.files.keep(sent, client, {}, id=name)
    return media
