"""The application: all routes around one model."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response

from segue.engine import Engine
from segue.features import MemoryStore
from segue.serve import chat, errors, files, label_studio, page, segment, sessions
from segue.serve.context import Context
from segue.serve.decoding import Decoders
from segue.serve.errors import ApiError
from segue.serve.fetch import Fetcher
from segue.serve.guards import Guards
from segue.serve.media import MediaReader
from segue.serve.metrics import Metrics
from segue.serve.scheduler import Scheduler
from segue.serve.settings import Settings
from segue.serve.storage import FileStore

MEDIA_KEPT = 16
"""Images and videos whose features stay in memory, so that those who ask about one share them."""


def create_app(engine: Engine, settings: Settings, *, model: str) -> FastAPI:
    """The server of a loaded model, which clients call `model`."""
    if isinstance(engine.features, MemoryStore):
        engine.features.count = MEDIA_KEPT
    metrics = Metrics()
    scheduler = Scheduler(engine, settings.limits, metrics, rows=settings.rows)
    folder = tempfile.TemporaryDirectory(prefix="segue-serve-")
    place = Path(folder.name)
    decoders = Decoders(settings.limits, place)
    media = MediaReader(settings.limits, decoders, place, Fetcher(settings.media_domains, settings.limits))
    context = Context(model, settings, scheduler, media, FileStore(place, settings.limits), metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        scheduler.start()
        try:
            yield
        finally:
            scheduler.close()
            await decoders.close()
            folder.cleanup()

    app = FastAPI(title="Segue", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guards, settings=settings)
    errors.install(app)
    _add_states(app, context)
    for routes in (chat, files, segment, sessions, label_studio):
        routes.add_routes(app, context)
    page.add_routes(app)
    app.state.context = context
    return app


def _add_states(app: FastAPI, context: Context) -> None:
    created = int(time.time())

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """Whether the model has answered a first question."""
        if not context.scheduler.is_ready:
            raise ApiError(503, "the model is not ready", code="not_ready", headers={"retry-after": "2"})
        return {"status": "ready"}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(context.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models that are served."""
        return {"object": "list", "data": [_model(context, created)]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """One of them."""
        context.check_model(name)
        return _model(context, created)


def _model(context: Context, created: int) -> dict[str, Any]:
    return {"id": context.model, "object": "model", "created": created, "owned_by": "segue"} | {
        "can_segment": context.scheduler.engine.model.grounder is not None
    }
