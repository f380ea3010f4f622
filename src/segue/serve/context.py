"""What all routes of one server share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from segue.serve.errors import ApiError
from segue.serve.media import MediaReader
from segue.serve.metrics import Metrics
from segue.serve.scheduler import Scheduler
from segue.serve.schema import FileId, Medium
from segue.serve.settings import Limits, Settings
from segue.serve.storage import FileStore
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
        if not isinstance(given, FileId):
            return await self.media.from_url(given if isinstance(given, str) else given.url, kind, param)
        file = self.files.get(client, given.file_id, param)
        if file.kind != kind:
            message = f"{param}: the file is of kind {file.kind}, which is not expected here"
            raise ApiError(400, message, code="invalid_media", param=param)
        return await self.media.from_file(file.path, file.digest, kind, param)

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
