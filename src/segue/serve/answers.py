"""From a request to an answer over HTTP: whole, or as a stream of events, given up when the client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from segue.serve.errors import ApiError, told

T = TypeVar("T")
StreamForm = Literal["done", "named", "lines"]
"""Server-sent events that end with [DONE]; those that say their type; lines of JSON."""
LEFT = 499
"""The status, which nobody reads, of a request whose client has left."""


@runtime_checkable
class Closing(Protocol):
    """Work for a client that can be given up."""

    def close(self) -> None:
        """Do no more."""
        ...


class EventStream(StreamingResponse):
    """Objects as server-sent events, or as lines of JSON; the request behind them ends with the response."""

    def __init__(self, events: AsyncIterator[Any], ticket: Closing, request_id: str, *, form: StreamForm = "done"):
        self._ticket = ticket
        media_type = "application/x-ndjson" if form == "lines" else "text/event-stream"
        super().__init__(_written(events, request_id, form), media_type=media_type)
        self.headers["x-accel-buffering"] = "no"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ticket.close()


async def _written(events: AsyncIterator[Any], request_id: str, form: StreamForm) -> AsyncIterator[str]:
    """Each event in its form; what goes wrong on the way is the last of them."""
    try:
        async for event in events:
            yield line(event, form)
    except Exception as error:  # noqa: BLE001  the status is sent already, and `told` logs what is our mistake
        body = told(error, request_id).body()
        yield line(body if form != "named" else body["error"] | {"type": "error"} | body, form)
    if form == "done":
        yield "data: [DONE]\n\n"


def line(event: Any, form: StreamForm) -> str:
    """An event as it is sent."""
    text = json.dumps(event, ensure_ascii=False)
    if form == "lines":
        return text + "\n"
    return (f"event: {event['type']}\n" if form == "named" else "") + f"data: {text}\n\n"


async def while_connected(request: Request, ticket: Closing, work: Coroutine[Any, Any, T]) -> T:
    """What comes of some work on a ticket, which is given up when the client leaves or anything goes wrong."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(left(request.receive))
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


async def left(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
