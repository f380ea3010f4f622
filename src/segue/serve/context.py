"""What all routes of one server share."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from segue.serve.errors import ApiError
from segue.serve.media import MediaReader
from segue.serve.metrics import Metrics
from segue.serve.scheduler import Scheduler
from segue.serve.schema import FileId, Medium, Url
from segue.serve.settings import Limits, Settings
from segue.serve.storage import FileStore, Kept, Sent
from segue.types import Media, MediaKind


@dataclass(frozen=True, slots=True)
class Context:
    """The models under their names, and what answers for them."""

    models: Mapping[str, Scheduler]
    settings: Settings
    media: MediaReader
    files: FileStore
    metrics: Metrics

    @property
    def scheduler(self) -> Scheduler:
        """The first model, which answers where none is named."""
        return next(iter(self.models.values()))

    @property
    def limits(self) -> Limits:
        """What clients may ask for."""
        return self.settings.limits

    async def open(self, given: Medium, kind: MediaKind, param: str, client: str) -> Media:
        """What a client shows, decoded.

        Raises: ApiError.
        """
        if isinstance(given, FileId):
            return await self.open_kept(self._uploaded(given, kind, param, client), kind, param)
        return await self.media.from_bytes(await self.media.read(_address(given), param), kind, param)

    async def open_kept(self, kept: Kept, kind: MediaKind | None, param: str) -> Media:
        """What is kept, decoded.

        Raises: ApiError.
        """
        return await self.media.from_file(self.files.path(kept), kept.digest, kind, param)

    def forget(self, kept: Kept) -> None:
        """Let go of what is kept, on the disk and in memory."""
        self.files.remove(kept)
        self.media.forget(kept.digest)

    async def send(self, given: Medium, kind: MediaKind, param: str, client: str, path: Path) -> Sent:
        """What a client shows, as bytes at a path.

        Raises: ApiError.
        """
        if isinstance(given, FileId):
            return self.files.link(self._uploaded(given, kind, param, client), path)
        return await asyncio.to_thread(self.files.put, await self.media.read(_address(given), param), path)

    def _uploaded(self, given: FileId, kind: MediaKind, param: str, client: str) -> Kept:
        file = self.files.get(client, given.file_id, param=param)
        if file.about["media"]["kind"] != kind:
            message = f"{param}: the file is of kind {file.about['media']['kind']}, which is not expected here"
            raise ApiError(400, message, code="invalid_media", param=param)
        return file

    def served(self, name: str | None) -> Scheduler:
        """The model of a name; without one, the first.

        Raises: ApiError, if it is not served.
        """
        if name is None:
            return self.scheduler
        if name not in self.models:
            known = ", ".join(map(repr, self.models))
            message = f"there is no model {name[:100]!r} here; this server has {known}"
            raise ApiError(404, message, code="model_not_found", param="model")
        return self.models[name]


def _address(given: str | Url) -> str:
    return given if isinstance(given, str) else given.url
