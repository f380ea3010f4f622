"""Connections to the server: so many, and none that keeps a place without asking for anything."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from segue.serve.errors import ApiError

HEAD_SECONDS = 30
"""For which the line and the headers of a request may come."""


class Connection(H11Protocol):
    """A connection that is closed when the head of a request does not come in time, or the rest of one that has been
    answered already, and that is refused when there are `most` others.
    """

    most = 512

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, or say that there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.write(_full())
            transport.close()
            return
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._in_time()
        super().connection_lost(exc)

    def _wait(self) -> None:
        """Count the time from the first byte that is not followed by all; more bytes on the way give no more of it."""
        is_answered = self.cycle is not None and self.cycle.response_complete
        has_to_come = self.conn.their_state is h11.IDLE or (is_answered and self.conn.their_state is h11.SEND_BODY)
        if not has_to_come:
            self._in_time()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def _full() -> bytes:
    error = ApiError(503, "too many connections are open; come again later", code="too_many_connections")
    body = bytes(error.response().body)
    head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\n"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body
