"""Clients that open a connection and do not say what they want."""

import json
import socket
from contextlib import contextmanager

import pytest

from segue.serve import connections
from segue.serve.connections import Connection

HEAD = b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


@contextmanager
def connected(server, sent=b""):
    place = server.url.removeprefix("http://").split(":")
    with socket.create_connection(place, timeout=60) as client:
        client.sendall(sent)
        yield client


def told(client):
    """All that comes until the server closes the connection."""
    said = b""
    while piece := client.recv(10_000):
        said += piece
    return said


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"", b""), (b"GET /hea", b""), (HEALTH[:-2] + b"x: ", b""), (HEALTH + b"GET /", b"200"), (HEAD % b"/no", b"404")],
)
def test_a_request_that_does_not_go_on_is_hung_up(server, monkeypatch, sent, status):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.1)
    with connected(server, sent) as client:
        assert told(client)[9:12] == status


def test_a_request_that_is_whole_has_all_the_time_of_its_answer(serve, wordy):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}
    with (
        serve(wordy) as server,
        server.http() as http,
        http.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        lines = answer.iter_lines()  # which is closed, and the connection with it, when nobody has it
        assert next(lines).startswith("data: ")
        [connection] = server.uvicorn.server_state.connections
        assert connection._late is None


def test_a_body_that_stops_coming_is_answered_and_hung_up(serve, wordy):
    with serve(wordy, {"body_seconds": 0.1}) as server, connected(server, HEAD % b"/v1/segment") as client:
        head, _, body = told(client).partition(b"\r\n\r\n")
    assert head[9:12] == b"408" and json.loads(body)["error"]["code"] == "body_too_slow"


def test_there_are_no_more_connections_than_there_may_be(serve, wordy, monkeypatch):
    with serve(wordy) as server:
        monkeypatch.setattr(Connection, "most", 1)
        with connected(server, HEALTH) as first:
            assert first.recv(10_000)[9:12] == b"200"
            with connected(server) as second:
                head, _, body = told(second).partition(b"\r\n\r\n")
            assert head[9:12] == b"503" and json.loads(body)["error"]["code"] == "too_many_connections"
