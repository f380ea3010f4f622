"""`/v1/video/sessions`: a video that is sent once, phrases that come one after another, and masks frame by frame."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from segue.serve import regions
from segue.serve.answers import EventStream, StreamForm, while_connected
from segue.serve.chat import usage
from segue.serve.context import Context
from segue.serve.dialogue import check_frames
from segue.serve.errors import ApiError
from segue.serve.scheduler import FrameRles, Scheduler, Ticket, Told
from segue.serve.schema import Answering, Closed, Medium, Phrase
from segue.serve.segment import not_found
from segue.serve.settings import Limits
from segue.types import Finished, Media, ObjectsFound

Json = dict[str, Any]


class StartRequest(Closed):
    """The video to look at."""

    video: Medium
    model: str | None = None


class PhraseRequest(Closed):
    """One more thing to follow."""

    phrase: Phrase


class FollowRequest(Answering):
    """How to follow."""


@dataclass(slots=True)
class Session:
    """A video and what is to be followed in it, by one client."""

    owner: str
    media: Media
    served: Scheduler
    phrases: list[str] = field(default_factory=list)
    id: str = field(default_factory=lambda: f"video-{secrets.token_hex(16)}")
    used: float = field(default_factory=time.monotonic)

    def to_json(self) -> Json:
        """What it is."""
        media = regions.media_to_json(self.media)
        return {"id": self.id, "object": "video.session", "media": media, "phrases": self.phrases} | {
            "model": self.served.name
        }


class SessionStore:
    """The sessions there are, each seen by its owner alone, and closed when nobody has used it for a while."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._sessions: dict[str, Session] = {}

    def add(self, session: Session) -> None:
        """Open a session.

        Raises: ApiError, if there are too many.
        """
        self._sweep()
        if len(self._sessions) >= self._limits.sessions:
            message = f"{len(self._sessions)} sessions are open already; close one, or come later"
            raise ApiError(429, message, code="too_many_sessions", headers={"retry-after": "30"})
        self._sessions[session.id] = session

    def get(self, owner: str, name: str) -> Session:
        """A session of this owner.

        Raises: ApiError, if there is none.
        """
        self._sweep()
        session = self._sessions.get(name)
        if session is None or session.owner != owner:
            raise ApiError(404, "there is no such session; it may have expired", code="no_such_session")
        session.used = time.monotonic()
        return session

    def close(self, session: Session) -> None:
        """Forget a session."""
        del self._sessions[session.id]

    def _sweep(self) -> None:
        oldest = time.monotonic() - self._limits.kept_seconds
        self._sessions = {name: one for name, one in self._sessions.items() if one.used >= oldest}


def add_routes(app: FastAPI, context: Context) -> None:
    """The routes."""
    sessions = SessionStore(context.limits)

    @app.post("/v1/video/sessions", status_code=201)
    async def start(body: StartRequest, request: Request) -> Json:
        """Send a video."""
        served = context.served(body.model)
        media = await context.open(body.video, "video", "video", request.state.client)
        session = Session(request.state.client, media, served)
        sessions.add(session)
        return session.to_json() | ({"notes": list(media.notes)} if media.notes else {})

    @app.get("/v1/video/sessions/{session_id}")
    async def one(session_id: str, request: Request) -> Json:
        """What a session is about."""
        return sessions.get(request.state.client, session_id).to_json()

    @app.post("/v1/video/sessions/{session_id}/phrases")
    async def add_phrase(session_id: str, body: PhraseRequest, request: Request) -> Json:
        """Name one more thing to follow."""
        session = sessions.get(request.state.client, session_id)
        if len(session.phrases) >= context.limits.phrases:
            message = f"{len(session.phrases)} phrases are the most that are followed together"
            raise ApiError(400, message, code="limit_exceeded", param="phrase")
        session.phrases.append(body.phrase)
        return session.to_json()

    @app.post("/v1/video/sessions/{session_id}/follow")
    async def follow(session_id: str, body: FollowRequest, request: Request) -> Response:
        """Follow all that was named: server-sent events where they are accepted, else lines of JSON."""
        session = sessions.get(request.state.client, session_id)
        check_frames(body, [session.media], context.limits)
        # masks are told as they come, and kept only where their probabilities are to be told at the end
        options = body.options(context.limits, keep_masks=body.probabilities)
        asked = session.served.engine.segmentation(session.media, list(session.phrases), options)
        ticket = session.served.submit(asked, request.state.client)
        first = await while_connected(request, ticket, anext(ticket))
        is_sse = "text/event-stream" in request.headers.get("accept", "")
        form: StreamForm = "done" if is_sse else "lines"
        return EventStream(_events(first, ticket, session, body), ticket, request.state.request_id, form=form)

    @app.delete("/v1/video/sessions/{session_id}")
    async def close(session_id: str, request: Request) -> Json:
        """Forget a session and its video."""
        sessions.close(sessions.get(request.state.client, session_id))
        return {"id": session_id, "object": "video.session", "deleted": True}


async def _events(first: Told, ticket: Ticket, session: Session, body: FollowRequest) -> AsyncIterator[Json]:
    """What is found, the masks on each frame, and at the end how sure all of it is."""
    event: Told | None = first
    while event is not None:
        session.used = time.monotonic()
        if isinstance(event, ObjectsFound):
            yield {"type": "found", "regions": regions.found_to_json(event.regions)}
        elif isinstance(event, FrameRles):
            yield {"type": "frame"} | regions.frame_to_json(event, session.media, body)
        elif isinstance(event, Finished):
            told = await asyncio.to_thread(regions.regions_to_json, event.answer, body)
            about = {"regions_version": regions.VERSION, "not_found": not_found(event.answer)}
            yield {"type": "done", "regions": told} | about | {"usage": usage([event.answer])}
        event = await anext(ticket, None)
