"""`/v1/segment`: masks of what is named in words, in one image or video, in one request."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from fastapi import FastAPI, Request
from pydantic import Field, model_validator

from segue.serve import regions
from segue.serve.answers import while_connected
from segue.serve.chat import check_frames, usage
from segue.serve.context import Context
from segue.serve.errors import ApiError
from segue.serve.scheduler import Ticket
from segue.serve.schema import Answering, Medium, Phrase
from segue.types import Answer, Finished

Json = dict[str, Any]


class SegmentRequest(Answering):
    """What to find, and in what."""

    phrases: list[Phrase] = Field(min_length=1)
    image: Medium | None = None
    video: Medium | None = None
    model: str | None = None

    @model_validator(mode="after")
    def _one(self) -> SegmentRequest:
        if (self.image is None) == (self.video is None):
            raise ValueError("expected an image or a video, and not both")
        return self


def add_routes(app: FastAPI, context: Context) -> None:
    """The route."""

    @app.post("/v1/segment")
    async def segment(body: SegmentRequest, request: Request) -> Json:
        """Masks of all phrases, each asked for on its own, every frame encoded once."""
        if body.model is not None:
            context.check_model(body.model)
        if len(body.phrases) > context.limits.phrases:
            message = f"{len(body.phrases)} phrases; at most {context.limits.phrases} are asked for together"
            raise ApiError(400, message, code="limit_exceeded", param="phrases")
        given, kind = (body.image, "image") if body.image is not None else (body.video, "video")
        assert given is not None
        media = await context.open(given, "image" if kind == "image" else "video", kind, request.state.client)
        check_frames(body, [media], context.limits)
        asked = context.scheduler.engine.segmentation(media, body.phrases, body.options(context.limits))
        ticket = context.scheduler.submit(asked, request.state.client)
        answer = await while_connected(request, ticket, finished(ticket))
        told = await asyncio.to_thread(regions.regions_to_json, answer, probabilities=body.probabilities)
        about = {"id": f"seg-{secrets.token_hex(12)}", "object": "segmentation", "model": context.model}
        return about | {
            "media": regions.media_to_json(media),
            "regions": told,
            "regions_version": regions.VERSION,
            "not_found": not_found(answer),
            "usage": usage(answer.usage),
            "notes": list(media.notes),
        }


async def finished(ticket: Ticket) -> Answer:
    """The answer that a request comes to."""
    async for event in ticket:
        if isinstance(event, Finished):
            return event.answer
    raise AssertionError("a request ends with an answer or an error")


def not_found(answer: Answer) -> list[Phrase]:
    """The phrases that brought no object."""
    return list(answer.lineage.get("not_found", []))
