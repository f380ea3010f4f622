"""`/v1/video/sessions`: a video that is sent once, phrases that come one after another, and masks frame by frame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from segue.serve import regions
from segue.serve.answers import EventStream, StreamForm, while_connected
from segue.serve.chat import usage
from segue.serve.context import Context
from segue.serve.dialogue import check_frames
from segue.serve.errors import ApiError
from segue.serve.scheduler import FrameRles, Ticket, Told
from segue.serve.schema import Answering, Closed, Medium, Phrase
from segue.serve.segment import not_found
from segue.serve.storage import FileStore, Kept, new_id
from segue.types import Finished, Media, ObjectsFound

Json = dict[str, Any]
SESSIONS = "/v1/video/sessions"


class StartRequest(Closed):
    """The video to look at."""

    video: Medium
    model: str | None = None


class PhraseRequest(Closed):
    """One more thing to follow."""

    phrase: Phrase


class FollowRequest(Answering):
    """How to follow."""


class Following:
    """A request that follows a session, which is held until it is over.

    Raises: OSError, if that cannot be noted.
    """

    def __init__(self, ticket: Ticket, files: FileStore, session: Kept):
        self.ticket = ticket
        try:
            self._held = files.hold(session)
        except OSError:
            ticket.close()
            raise

    def close(self) -> None:
        """Do no more for it."""
        self.ticket.close()
        self._held.unlink(missing_ok=True)


def add_routes(app: FastAPI, context: Context) -> None:
    """The routes."""
    files, limits = context.files, context.limits

    @app.post(SESSIONS, status_code=201)
    async def start(body: StartRequest, request: Request) -> Json:
        """Send a video."""
        served, client = context.served(body.model), request.state.client
        with files.sending() as path:
            sent = await context.send(body.video, "video", "video", client, path)
            media = await context.media.from_file(path, sent.digest, "video", "video")
            _make_room(context, client)
            about: Json = {"media": regions.media_to_json(media), "phrases": [], "model": served.name}
            session = files.keep(sent, client, about, id=getattr(request.state, "session", None) or new_id("video"))
        return to_json(session) | ({"notes": list(media.notes)} if media.notes else {})

    @app.get(f"{SESSIONS}/{{session_id}}")
    async def one(session_id: str, request: Request) -> Json:
        """What a session is about."""
        return to_json(files.get(request.state.client, session_id, "video"))

    @app.post(f"{SESSIONS}/{{session_id}}/phrases")
    async def add_phrase(session_id: str, body: PhraseRequest, request: Request) -> Json:
        """Name one more thing to follow."""
        session = files.get(request.state.client, session_id, "video")
        phrases = [*session.about["phrases"], body.phrase]
        if len(phrases) > limits.phrases:
            message = f"{limits.phrases} phrases are the most that are followed together"
            raise ApiError(400, message, code="limit_exceeded", param="phrase")
        return to_json(files.update(session, session.about | {"phrases": phrases}))

    @app.post(f"{SESSIONS}/{{session_id}}/follow")
    async def follow(session_id: str, body: FollowRequest, request: Request) -> Response:
        """Follow all that was named: server-sent events where they are accepted, else lines of JSON."""
        session = files.get(request.state.client, session_id, "video")
        served, media = context.served(session.about["model"]), await context.open_kept(session, "video", "session_id")
        check_frames(body, [media], limits)
        # masks are told as they come, and kept only where their probabilities are to be told at the end
        options = body.options(limits, keep_masks=body.probabilities)
        asked = served.engine.segmentation(media, session.about["phrases"], options)
        ticket = Following(served.submit(asked, request.state.client, session.id), files, session)
        first = await while_connected(request, ticket, anext(ticket.ticket))
        is_sse = "text/event-stream" in request.headers.get("accept", "")
        form: StreamForm = "done" if is_sse else "lines"
        events = _events(first, ticket.ticket, media, body, lambda: files.touch(session))
        return EventStream(events, ticket, request.state.request_id, form=form)

    @app.delete(f"{SESSIONS}/{{session_id}}")
    async def close(session_id: str, request: Request) -> Json:
        """Forget a session and its video."""
        context.forget(files.get(request.state.client, session_id, "video"))
        return {"id": session_id, "object": "video.session", "deleted": True}


def _make_room(context: Context, client: str) -> None:
    """Let a client's session go that it has not used for longest, where it has as many as it may.

    Raises: ApiError, if all of them are being followed.
    """
    files, most = context.files, context.limits.sessions
    own = [one for one in files.all("video") if one.owner == client]
    unused = sorted((one for one in own if not files.is_held(one)), key=files.used)
    too_many = len(own) - most + 1
    if too_many > len(unused):
        message = f"{len(own)} sessions are being followed already; end one, or come later"
        raise ApiError(429, message, code="too_many_sessions", headers={"retry-after": "30"})
    for one in unused[: max(0, too_many)]:
        context.forget(one)


def to_json(session: Kept) -> Json:
    """What a session is about."""
    return {"id": session.id, "object": "video.session", **session.about}


async def _events(
    first: Told, ticket: Ticket, media: Media, body: FollowRequest, used: Callable[[], None]
) -> AsyncIterator[Json]:
    """What is found, the masks on each frame, and at the end how sure all of it is; `used` is called at each."""
    event: Told | None = first
    while event is not None:
        used()
        if isinstance(event, ObjectsFound):
            yield {"type": "found", "regions": regions.found_to_json(event.regions)}
        elif isinstance(event, FrameRles):
            yield {"type": "frame"} | regions.frame_to_json(event, media, body)
        elif isinstance(event, Finished):
            told = await asyncio.to_thread(regions.regions_to_json, event.answer, body)
            about = {"regions_version": regions.VERSION, "not_found": not_found(event.answer)}
            yield {"type": "done", "regions": told} | about | {"usage": usage([event.answer])}
        event = await anext(ticket, None)
