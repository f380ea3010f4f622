"""A server on a socket, until it is told to end."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI

from segue.serve.settings import Settings

GRACE = 60
"""Seconds that running requests have to come to their end after SIGTERM."""


def run(app: FastAPI, settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C: no request is taken then, and those that run are answered."""
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=64 * 1024,
    )
