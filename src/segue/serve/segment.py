"""`/v1/segment`: masks of what is named in words, in one image or video, in one request."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from fastapi import FastAPI, Request
from pydantic import Field, model_validator

from segue.serve import regions
from segue.serve.answers import while_connected
from segue.serve.chat import finished, usage
from segue.serve.context import Context
from segue.serve.dialogue import check_frames
from segue.serve.errors import ApiError
from segue.serve.scheduler import Tickets
from segue.serve.schema import Answering, CacheKey, Items, Medium, Phrase
from segue.types import Answer

Json = dict[str, Any]


class SegmentRequest(Answering):
    """What to find, and in what."""

    phrases: Items[Phrase] = Field(min_length=1)
    image: Medium | None = None
    video: Medium | None = None
    model: str | None = None
    prompt_cache_key: CacheKey | None = None

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
        answer = await answered(body, context, request)
        assert answer.media is not None
        told = await asyncio.to_thread(regions.told, answer, body)
        about = {"id": f"seg-{secrets.token_hex(12)}", "object": "segmentation"}
        about |= {"model": context.served(body.model).name}
        rest = {"not_found": not_found(answer), "usage": usage([answer]), "notes": list(answer.media.notes)}
        return about | told | rest


async def answered(body: SegmentRequest, context: Context, request: Request) -> Answer:
    """What is found of all phrases, each asked for on its own.

    Raises: ApiError and SegueError, for what cannot be asked.
    """
    served, client = context.served(body.model), request.state.client
    if len(body.phrases) > context.limits.phrases:
        message = f"{len(body.phrases)} phrases; at most {context.limits.phrases} are asked for together"
        raise ApiError(400, message, code="limit_exceeded", param="phrases")
    given, kind = (body.image, "image") if body.image is not None else (body.video, "video")
    assert given is not None
    media = await context.open(given, "image" if kind == "image" else "video", kind, client)
    check_frames(body, [media], context.limits)
    asked = served.engine.segmentation(media, body.phrases, body.options(context.limits))
    tickets = Tickets([served.submit(asked, client, body.prompt_cache_key)])
    [answer] = await while_connected(request, tickets, finished(tickets))
    return answer


def not_found(answer: Answer) -> list[Phrase]:
    """The phrases that brought no object."""
    return list(answer.lineage.get("not_found", []))
