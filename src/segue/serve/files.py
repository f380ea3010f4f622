"""`/v1/files`: images and videos that are sent once and spoken of often."""

from __future__ import annotations

import asyncio
import io
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, File, Form, Query, Request, UploadFile
from fastapi.responses import Response
from PIL import Image

from segue.serve.context import Context
from segue.serve.errors import ApiError
from segue.serve.regions import media_to_json
from segue.serve.storage import Kept, new_id
from segue.types import Media

Json = dict[str, Any]
LONGEST_NAME = 200


def add_routes(app: FastAPI, context: Context) -> None:
    """The routes."""
    files = context.files

    def to_json(file: Kept) -> Json:
        """OpenAI's form of a file, with what it shows."""
        return {
            "id": file.id,
            "object": "file",
            "bytes": file.size,
            "created_at": file.created,
            "expires_at": int(files.used(file) + context.limits.kept_seconds),
            "filename": file.about["name"],
            "purpose": "user_data",
            "status": "processed",
            "media": file.about["media"],
        }

    @app.post("/v1/files")
    async def upload(
        request: Request, file: Annotated[UploadFile, File()], purpose: Annotated[str, Form()] = "user_data"
    ) -> Json:
        """Upload an image or a video; it is decoded at once, so that what cannot be read is told at once."""
        with files.sending() as path:
            sent = await files.write(file, path)
            media = await context.media.from_file(path, sent.digest, None, "file")
            about = {"name": (file.filename or "")[:LONGEST_NAME], "media": media_to_json(media)}
            kept = files.keep(sent, request.state.client, about, id=new_id("file"))
        return to_json(kept) | ({"notes": list(media.notes)} if media.notes else {})

    @app.get("/v1/files")
    async def listed(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        after: str | None = None,
        purpose: str | None = None,
    ) -> Json:
        """The files of whoever asks, oldest first: so many, `after` one of them, of a purpose."""
        own = [file for file in files.all("file") if file.owner == request.state.client]
        if after is not None:
            before = files.get(request.state.client, after, param="after")
            own = [file for file in own if (file.created, file.id) > (before.created, before.id)]
        found = [one for one in map(to_json, own) if purpose in (None, one["purpose"])]
        return {"object": "list", "data": found[:limit], "has_more": len(found) > limit}

    @app.get("/v1/files/{file_id}")
    async def one(file_id: str, request: Request) -> Json:
        """What is known of a file."""
        return to_json(files.get(request.state.client, file_id))

    @app.delete("/v1/files/{file_id}")
    async def delete(file_id: str, request: Request) -> Json:
        """Forget a file."""
        context.forget(files.get(request.state.client, file_id))
        return {"id": file_id, "object": "file", "deleted": True}

    @app.get("/v1/files/{file_id}/frames/{number}")
    async def frame(file_id: str, number: int, request: Request) -> Response:
        """One frame of a file as JPEG, for whoever draws masks on it; an image has frame 0."""
        file = files.get(request.state.client, file_id)
        media = await context.open_kept(file, file.about["media"]["kind"], "file_id")
        if not 0 <= number < media.count:
            raise ApiError(404, f"there is no frame {number}; there are 0 to {media.count - 1}", code="no_such_frame")
        return Response(await asyncio.to_thread(_jpeg, media, number), media_type="image/jpeg")


def _jpeg(media: Media, number: int) -> bytes:
    assert isinstance(media.source, np.ndarray)
    pixels = media.source if media.kind == "image" else media.source[number]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=92)
    return file.getvalue()
