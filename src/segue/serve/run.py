"""A server on a socket, until it is told to end."""

from __future__ import annotations

import math
import socket

import uvicorn
from fastapi import FastAPI

from segue.errors import ConfigError
from segue.serve.connections import Connection
from segue.serve.settings import Settings

GRACE = 10
"""Seconds, beside the deadline of an answer, that requests have to come to their end after SIGTERM."""
CONNECTIONS = 512
"""That may be open at a time; more, where so many requests may wait that their clients need them."""


def check_address(settings: Settings) -> None:
    """Find out that there can be a server where it is to listen, before a model is loaded for it.

    Raises: ConfigError, if the port is taken, or the address is none of this machine.
    """
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {reason}; give another --port or --host"
        ) from error


def run(app: FastAPI, settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C: no request is taken then, and those that were taken are answered."""
    limits = settings.limits

    class Bounded(Connection):
        most = max(CONNECTIONS, 4 * (limits.waiting + settings.rows))

    uvicorn.run(
        app,
        http=Bounded,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(limits.deadline_seconds) + GRACE,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=64 * 1024,
    )
