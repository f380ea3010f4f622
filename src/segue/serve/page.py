"""The page at `/`: a few files of our own, and drawn examples."""

from __future__ import annotations

import asyncio
import io
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.responses import Response
from PIL import Image

from segue.demo import FRAME_RATE, challenges
from segue.serve.errors import ApiError

Json = dict[str, Any]

SEED = 7
"""Of the drawn examples: those of the README."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Only files of this server count, and nothing that stands in a text can become code."""
_TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}


def add_routes(app: FastAPI) -> None:
    """The routes."""

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """The page."""
        return _file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        """A file of the page."""
        return _file(name)

    @app.get("/v1/examples")
    async def examples() -> Json:
        """Drawn pictures that the demo model knows, with phrases for what is in them."""
        drawn = await asyncio.to_thread(_drawn)
        return {"object": "list", "data": [{"name": name, "phrases": words} for name, (_, words) in drawn.items()]}

    @app.get("/v1/examples/{name}")
    async def example(name: str) -> Response:
        """One of them, as PNG."""
        drawn = await asyncio.to_thread(_drawn)
        if name not in drawn:
            raise ApiError(404, f"there is no such example; there are {', '.join(drawn)}", code="no_such_example")
        return Response(drawn[name][0], media_type="image/png")


def _file(name: str) -> Response:
    found = _page().get(name)
    if found is None:
        raise ApiError(404, "there is no such file")
    kind = _TYPES[name.rpartition(".")[2]]
    return Response(found, media_type=f"{kind}; charset=utf-8", headers={"content-security-policy": POLICY})


@lru_cache(1)
def _page() -> dict[str, bytes]:
    """The files of the page; no other name is ever looked up."""
    return {one.name: one.read_bytes() for one in (files("segue.serve") / "page").iterdir()}


@lru_cache(1)
def _drawn() -> dict[str, tuple[bytes, list[dict[str, str]]]]:
    return {
        one.name: (
            _png(one.scene.frames),
            [{str(key): text for key, text in each.words.items()} for each in one.phrases],
        )
        for one in challenges(SEED)
    }


def _png(frames: np.ndarray) -> bytes:
    file = io.BytesIO()
    first, *more = map(Image.fromarray, frames)
    duration = 1000 / FRAME_RATE
    first.save(file, format="PNG", save_all=bool(more), append_images=more, duration=duration if more else None)
    return file.getvalue()
