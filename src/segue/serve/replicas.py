"""Several replicas of one server behind Ray Serve, and the front that clients speak to.

The front has the guards and the socket; Ray Serve keeps the replicas running and says which of them is free. Each has
the whole application and a model of its own. What clients send to be kept lies in a folder that all share, so that any
replica can go on with any session; the requests of a session are handed to the one that had it last, which has its
video decoded. A replica that dies takes nothing with it but what it was answering, and is replaced.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from starlette.types import Message, Receive, Scope, Send

from segue.errors import ConfigError
from segue.jobs import ray_runner
from segue.serve import errors
from segue.serve.answers import LEFT, left, line
from segue.serve.errors import ApiError
from segue.serve.guards import Guards
from segue.serve.metrics import METRICS_TYPE, merged
from segue.serve.scratch import scratch
from segue.serve.sessions import SESSIONS
from segue.serve.settings import MIB, Settings
from segue.serve.storage import new_id

Build = Callable[[Settings, Path | None], FastAPI]
"""Makes the application, of one server, or of a replica with the folder that all share."""

MOST_AT_ONCE = 10_000
"""Requests that a replica is handed together; its own queue has the bound that clients are told of."""
_SESSION = re.compile(rf"{SESSIONS}(?:/([^/]+)(?:/.*)?)?/?")
_HANDED = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers", "client")


class Replica:
    """One of several servers: it answers requests that the front hands over."""

    def __init__(self, build: Build, settings: Settings, shared: Path):
        self._app, self._name = build(settings, shared), secrets.token_hex(4)
        self._lifespan: AsyncExitStack | None = None

    async def check_health(self) -> None:
        """Start, and wait until the models answer; Ray hands nothing over before."""
        models = self._app.state.context.models.values()
        if self._lifespan is None:
            self._lifespan = AsyncExitStack()
            await self._lifespan.enter_async_context(self._app.router.lifespan_context(self._app))
        while not all(model.is_ready for model in models):
            if any(model.has_failed for model in models):
                raise ConfigError("a model did not answer a first question; its log says why")
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """End."""
        if self._lifespan is not None:
            await self._lifespan.aclose()

    async def hold(self, session: str) -> str:
        """Be known as the one that has a session; Ray Serve wraps it."""
        return session

    async def answer(self, scope: Scope, body: bytes | Path, session: str) -> AsyncIterator[Message]:
        """The messages of a response, as they come; the work ends when nobody wants them any more."""
        said: asyncio.Queue[Message | None] = asyncio.Queue()
        pieces, is_whole = _pieces(body), False
        if session:
            await self.hold(session)

        async def receive() -> Message:
            piece = next(pieces, None)
            if piece is None:
                await asyncio.Event().wait()  # that the client has left is told by an end of the work
            return {"type": "http.request", "body": piece, "more_body": piece != b""}

        async def work() -> None:
            try:
                await self._app(scope, receive, said.put)
            finally:
                said.put_nowait(None)

        working = asyncio.create_task(work())
        try:
            while (message := await said.get()) is not None:
                yield message
                is_whole = _is_last(message)
            if not is_whole:
                await working
        finally:
            working.cancel()

    async def metrics(self) -> tuple[str, str]:
        """The name of this replica, and what it has counted."""
        return self._name, self._app.state.context.metrics.text().decode()


class Front:
    """Hands each request to a replica, and its answer to the client.

    `handle` is Ray Serve's, or what acts as one; `death` is what it raises when a replica dies.
    """

    def __init__(self, handle: Any, shared: Path, death: type[Exception]):
        self._handle, self._shared, self._death = handle, shared, death

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        begun = ""

        async def sending(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = dict(message["headers"]).get(b"content-type", b"-").decode()
            await send(message)

        path = self._shared / secrets.token_hex(8)
        try:
            await self._hand_over(scope, await _read(receive, path), receive, sending)
        except self._death as error:
            told = ApiError(503, "the replica that was answering has died; ask again", code="replica_died")
            if not begun:
                raise told from error
            event = line(told.body(), "lines" if begun.startswith("application/x-ndjson") else "done")
            await send({"type": "http.response.body", "body": event.encode(), "more_body": False})
        finally:
            path.unlink(missing_ok=True)

    async def _hand_over(self, scope: Scope, body: bytes | Path, receive: Receive, send: Send) -> None:
        known, session = {key: scope[key] for key in _HANDED if key in scope}, ""
        state = {key: scope["state"][key] for key in ("request_id", "client")}
        if found := _SESSION.fullmatch(scope["path"]):
            session = state["session"] = found[1] or new_id("video")
        handle = self._handle.options(stream=True, multiplexed_model_id=session)
        messages = handle.answer.remote(known | {"state": state}, body, session)
        leaving = asyncio.ensure_future(left(receive))
        coming, is_whole = asyncio.ensure_future(anext(messages, None)), False
        try:
            while True:
                # a client that has all of the answer may leave, and the replica goes on with what comes after it
                awaited = {coming} if is_whole else {coming, leaving}
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done() or (message := coming.result()) is None:
                    return
                await send(message)
                is_whole = _is_last(message)
                coming = asyncio.ensure_future(anext(messages, None))
        finally:
            leaving.cancel()
            messages.cancel()
            coming.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody asks any more


@contextmanager
def started(build: Build, settings: Settings, count: int) -> Iterator[FastAPI]:
    """So many replicas that are ready, and the application in front of them; they end with the block.

    Raises: ConfigError, without Ray, without room for them, and if one cannot be started.
    """
    try:
        from ray import exceptions, serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"several replicas need {error.name}; install it with: pip install 'segue[ray,serve]'"
        ) from error

    class Holding(Replica):
        hold = serve.multiplexed(max_num_models_per_replica=settings.limits.sessions)(Replica.hold)
        __del__ = Replica.close  # Ray Serve awaits it

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    inner = replace(settings, host="127.0.0.1", keys=(), requests_per_minute=None)  # the front asks for keys
    name = f"segue-{secrets.token_hex(4)}"
    with scratch("segue-replicas-") as folder, ray_runner.cluster() as (room, takes):
        if count > room:
            unit = "GPUs" if "num_gpus" in takes else "CPUs"
            raise ConfigError(f"{count} replicas need {count} {unit}; there is room for {room}: ask for fewer")
        deployed = serve.deployment(
            Holding,
            num_replicas=count,
            ray_actor_options=takes,
            max_ongoing_requests=MOST_AT_ONCE,
            graceful_shutdown_wait_loop_s=0.1,
        )
        serve.start(proxy_location="Disabled")
        try:
            try:
                handle = serve.run(deployed.bind(build, inner, folder), name=name, route_prefix=None)
            except RuntimeError as error:
                last = str(error).strip().rpartition("\n")[2]
                raise ConfigError(f"the replicas could not be started: {last}") from error
            yield front(handle, settings, folder, exceptions.RayActorError)
        finally:
            serve.delete(name)


def front(handle: Any, settings: Settings, shared: Path, death: type[Exception]) -> FastAPI:
    """The application that clients speak to."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guards, settings=settings)
    errors.install(app)

    @app.get("/metrics")
    async def metrics() -> Response:
        """What all replicas have counted."""
        counted = await handle.broadcast("metrics").results_async()
        return Response(merged(counted), media_type=METRICS_TYPE)

    app.mount("/", Front(handle, shared, death))
    return app


async def _read(receive: Receive, path: Path) -> bytes | Path:
    """The body of a request; a large one is written to the path, for it is handed over from there.

    Raises: ApiError, if the client leaves before its end.
    """
    data, has_more = bytearray(), True
    while has_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(LEFT, "the client has left")
        data += message.get("body", b"")
        has_more = message.get("more_body", False)
        if len(data) > MIB or (path.exists() and not has_more):
            with path.open("ab") as file:
                file.write(data)
            data.clear()
    return path if path.exists() else bytes(data)


def _is_last(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


def _pieces(body: bytes | Path) -> Iterator[bytes]:
    """A body in pieces, of which the last is empty."""
    if isinstance(body, bytes):
        yield body
    else:
        with body.open("rb") as file:
            while piece := file.read(MIB):
                yield piece
    yield b""
