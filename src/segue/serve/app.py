"""The application: all routes around one model."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response

from segue.engine import Engine
from segue.serve import chat, concepts, errors, files, label_studio, overlays, page, responses, segment, sessions
from segue.serve.context import Context
from segue.serve.decoding import Decoders
from segue.serve.errors import ApiError
from segue.serve.fetch import Fetcher
from segue.serve.guards import Guards
from segue.serve.media import MediaReader
from segue.serve.metrics import METRICS_TYPE, Metrics
from segue.serve.scheduler import Scheduler
from segue.serve.scratch import scratch
from segue.serve.settings import Settings
from segue.serve.storage import FileStore


def create_app(
    engine: Engine,
    settings: Settings,
    *,
    model: str,
    others: Mapping[str, Engine] = MappingProxyType({}),
    load: Callable[[str], Engine] | None = None,
    shared: Path | None = None,
) -> FastAPI:
    """The server of a loaded model, which clients call `model`, and of `others` by their names.

    `load` loads the model of a name once more; it is needed with `settings.idle_seconds`. With the folder `shared` it
    is one of several replicas: what clients send to be kept lies there, and the guards are in front of all of them.
    """
    metrics = Metrics()
    models = {
        name: Scheduler(name, one, settings, metrics, None if load is None else partial(load, name))
        for name, one in ({model: engine} | dict(others)).items()
    }
    metrics.watch("num_requests_running", "Requests that are being answered.", lambda: _sum(models, "running"))
    metrics.watch("num_requests_waiting", "Requests in the queue.", lambda: _sum(models, "waiting"))
    folder = ExitStack()
    place = folder.enter_context(scratch("segue-serve-", shared))
    kept = (shared or place) / "kept"
    kept.mkdir(exist_ok=True)
    decoders = Decoders(settings.limits, place)
    media = MediaReader(settings.limits, decoders, place, Fetcher(settings.media_domains, settings.limits))
    context = Context(models, settings, media, FileStore(kept, settings.limits), metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for scheduler in models.values():
            scheduler.start()
        try:
            yield
        finally:
            for scheduler in models.values():
                scheduler.close()
            await decoders.close()
            folder.close()

    app = FastAPI(title="Segue", lifespan=lifespan, docs_url=None, redoc_url=None)
    if shared is None:
        app.add_middleware(Guards, settings=settings)
    errors.install(app)
    _add_states(app, context)
    for routes in (chat, responses, files, overlays, segment, concepts, sessions, label_studio):
        routes.add_routes(app, context)
    page.add_routes(app)
    app.state.context = context
    return app


def _add_states(app: FastAPI, context: Context) -> None:
    created = int(time.time())

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """Whether the model has answered a first question."""
        if not all(model.is_ready for model in context.models.values()):
            raise ApiError(503, "the model is not ready", code="not_ready", headers={"retry-after": "2"})
        return {"status": "ready"}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(context.metrics.text(), media_type=METRICS_TYPE)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models that are served."""
        return {"object": "list", "data": [_model(one, created) for one in context.models.values()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """One of them."""
        return _model(context.served(name), created)


def _model(served: Scheduler, created: int) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": created, "owned_by": "segue"} | {
        "can_segment": served.engine.model.grounder is not None
    }


def _sum(models: Mapping[str, Scheduler], what: str) -> int:
    return sum(getattr(model, what) for model in models.values())
