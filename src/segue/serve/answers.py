"""From a request to an answer over HTTP: whole, or as a stream of events, given up when the client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from segue.serve.errors import ApiError, told
from segue.serve.scheduler import Ticket

T = TypeVar("T")
LEFT = 499
"""The status, which nobody reads, of a request whose client has left."""


class EventStream(StreamingResponse):
    """Objects as server-sent events, or as lines of JSON; the request behind them ends with the response."""

    def __init__(self, events: AsyncIterator[Any], ticket: Ticket, request_id: str, *, lines: bool = False):
        self._ticket = ticket
        media_type = "application/x-ndjson" if lines else "text/event-stream"
        super().__init__(_written(events, request_id, lines=lines), media_type=media_type)
        self.headers["x-accel-buffering"] = "no"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ticket.close()


async def _written(events: AsyncIterator[Any], request_id: str, *, lines: bool) -> AsyncIterator[str]:
    """Each event in its form; what goes wrong on the way is the last of them."""
    form = "{}\n" if lines else "data: {}\n\n"
    try:
        async for event in events:
            yield form.format(json.dumps(event, ensure_ascii=False))
    except Exception as error:  # noqa: BLE001  the status is sent already, and `told` logs what is our mistake
        yield form.format(json.dumps(told(error, request_id).body()))
    if not lines:
        yield "data: [DONE]\n\n"


async def while_connected(request: Request, ticket: Ticket, work: Coroutine[Any, Any, T]) -> T:
    """What comes of some work on a ticket, which is given up when the client leaves or anything goes wrong."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(LEFT, "the client has left")
        return working.result()
    except BaseException:
        ticket.close()
        raise
    finally:
        working.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
