"""`/v1/chat/completions`: OpenAI's form, with regions on the answer."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from segue import requests
from segue.clean_text import CleanText
from segue.engine import Options
from segue.media.sampling import choose
from segue.serve import regions
from segue.serve.answers import EventStream, while_connected
from segue.serve.context import Context
from segue.serve.errors import ApiError
from segue.serve.scheduler import FrameRles, Ticket, Told
from segue.serve.schema import Answering, ChatMessage, ChatRequest, FilePart, ImagePart, TextPart, VideoPart
from segue.serve.settings import Limits
from segue.types import Answer, Finished, Media, Message, ObjectsFound, TextDelta, Usage

Json = dict[str, Any]


@dataclass(slots=True)
class Completion:
    """An answer in the making: what stands on all of its chunks, and what has to be said about the request."""

    model: str
    fingerprint: str
    clean: CleanText
    notes: list[str]
    probabilities: bool
    media: Media | None
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answer: Answer) -> Json:
        """The response that is no stream."""
        choice = {"index": 0, "message": self._message(answer, answer.text) | {"refusal": None}, "logprobs": None}
        choice["finish_reason"] = finish_reason(answer)
        return self._around("chat.completion", [choice]) | {"usage": usage(answer.usage)}

    def chunk(self, delta: Json, reason: str | None = None) -> Json:
        """A chunk of a stream."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._around("chat.completion.chunk", [choice])

    def last(self, answer: Answer) -> Json:
        """The chunk that ends an answer: the rest of its text, and all of its regions."""
        return self.chunk(self._message(answer, self.clean.finish(answer.text)), finish_reason(answer))

    def counted(self, answer: Answer) -> Json:
        """The chunk after the last, for clients that asked for usage."""
        return self._around("chat.completion.chunk", []) | {"usage": usage(answer.usage)}

    def _message(self, answer: Answer, content: str) -> Json:
        told = regions.regions_to_json(answer, probabilities=self.probabilities)
        media = regions.media_to_json(answer.media)
        return {
            "role": "assistant",
            "content": content,
            "regions": told,
            "regions_version": regions.VERSION,
            "media": media,
        }

    def _around(self, kind: str, choices: list[Json]) -> Json:
        about = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        notes = {"notes": self.notes} if self.notes else {}
        return about | {"system_fingerprint": self.fingerprint, "choices": choices} | notes


def add_routes(app: FastAPI, context: Context) -> None:
    """The route."""

    @app.post("/v1/chat/completions")
    async def complete(body: ChatRequest, request: Request) -> Response:
        """An answer to a dialogue, whole or as a stream."""
        context.check_model(body.model)
        messages = await read(body.messages, context, request.state.client)
        shown = [part for message in messages for part in message.parts if isinstance(part, Media)]
        options = body.chosen(context.limits)
        check_frames(body, shown, context.limits)
        completion = Completion(
            context.model,
            str(context.scheduler.engine.lineage.get("model_hash")),
            CleanText(context.scheduler.engine.model.family.parse, options.stop),
            [*notes(body, options), *(note for medium in shown for note in medium.notes)],
            body.probabilities,
            shown[-1] if shown else None,
        )
        state = request.state
        ticket = context.scheduler.submit(requests.Request([messages], options), state.client)
        if not body.stream:
            return JSONResponse(await while_connected(request, ticket, _whole(ticket, completion)))
        # what can be refused is refused before the stream begins, with a status of its own
        first = await while_connected(request, ticket, anext(ticket))
        has_usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(_chunks(first, ticket, completion, has_usage), ticket, state.request_id)


async def read(messages: Sequence[ChatMessage], context: Context, client: str) -> list[Message]:
    """A dialogue with its media decoded; everything is counted before anything is decoded.

    Raises: ApiError.
    """
    limits = context.limits
    letters = sum(len(part.text) for one in messages for part in one.parts if isinstance(part, TextPart))
    shown = sum(not isinstance(part, TextPart) for one in messages for part in one.parts)
    for name, count, most in (
        ("messages", len(messages), limits.messages),
        ("letters", letters, limits.letters),
        ("images and videos", shown, limits.media),
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


def notes(body: ChatRequest, options: Options) -> list[str]:
    """What is done otherwise than it was asked for."""
    found = []
    if (body.max_completion_tokens or body.max_tokens or 0) > options.max_new_tokens:
        found.append(f"max_tokens is {options.max_new_tokens}, the most this server gives")
    if body.max_tiles > options.max_tiles:
        found.append(f"max_tiles is {options.max_tiles}, the most this server gives")
    return found


def finish_reason(answer: Answer) -> str:
    """Why an answer ended, in OpenAI's words."""
    return "length" if answer.stop_reason == "length" else "stop"


def usage(usage: Usage) -> Json:
    """What an answer cost, in OpenAI's form; visual tokens are among those of the prompt."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.answer_tokens,
        "total_tokens": usage.prompt_tokens + usage.answer_tokens,
        "visual_tokens": usage.visual_tokens,
        "encoded_frames": usage.encoded_frames,
    }


async def _turn(message: ChatMessage, number: int, context: Context, client: str) -> Message:
    role = "system" if message.role == "developer" else message.role
    parts: list[str | Media] = []
    for place, part in enumerate(message.parts):
        if isinstance(part, TextPart):
            parts.append(part.text)
            continue
        if role != "user":
            raise ApiError(400, "only users show images and videos", param=f"messages.{number}.content.{place}")
        parts.append(await _medium(part, f"messages.{number}.content.{place}", context, client))
    return Message(role, tuple(_laid_out(parts)))


def _laid_out(parts: Sequence[str | Media]) -> list[str | Media]:
    """Parts as the models were trained with: one medium stands first, whatever stands first in the request, and each is
    on a line of its own.
    """
    media = [part for part in parts if isinstance(part, Media)]
    if len(media) == 1:
        texts = [part for part in parts if isinstance(part, str)]
        return [media[0], "\n" + "\n".join(texts)]
    laid: list[str | Media] = []
    for part in parts:
        laid += [part, "\n"] if isinstance(part, Media) else [part]
    return laid


async def _medium(part: ImagePart | VideoPart | FilePart, param: str, context: Context, client: str) -> Media:
    if isinstance(part, FilePart):
        kind = context.files.get(client, part.file.file_id, param).kind
        return await context.open(part.file, kind, param, client)
    if isinstance(part, ImagePart):
        return await context.open(part.image_url, "image", param, client)
    return await context.open(part.video_url, "video", param, client)


async def _whole(ticket: Ticket, completion: Completion) -> Json:
    async for event in ticket:
        if isinstance(event, Finished):
            return await asyncio.to_thread(completion.whole, event.answer)
    raise AssertionError("a request ends with an answer or an error")


async def _chunks(first: Told, ticket: Ticket, completion: Completion, has_usage: bool) -> AsyncIterator[Json]:
    """The chunks of a stream; with usage asked for, all but the last say that they have none."""
    none = {"usage": None} if has_usage else {}
    yield completion.chunk({"role": "assistant", "content": ""}) | none
    event: Told | None = first
    while event is not None:
        if isinstance(event, Finished):
            yield (await asyncio.to_thread(completion.last, event.answer)) | none
            if has_usage:
                yield completion.counted(event.answer)
        elif (delta := _delta(event, completion)) is not None:
            yield completion.chunk(delta) | none
        event = await anext(ticket, None)


def _delta(event: Told, completion: Completion) -> Json | None:
    if isinstance(event, TextDelta):
        text = completion.clean.add(event.text)
        return {"content": text} if text else None
    if isinstance(event, ObjectsFound):
        return {"content": "", "regions_found": regions.found_to_json(event.regions)}
    if isinstance(event, FrameRles):
        return {"content": "", "frame": regions.frame_to_json(event, completion.media)}
    return None
