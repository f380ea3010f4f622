"""What all routes of one server share."""

from __future__ import annotations

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
    """The model under its name, and what answers for it."""

    model: str
    settings: Settings
    scheduler: Scheduler
    media: MediaReader
    files: FileStore
    metrics: Metrics

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

    def check_model(self, name: str) -> None:
        """Refuse a model that is not served.

        Raises: ApiError.
        """
        if name != self.model:
            message = f"there is no model {name[:100]!r} here; this server has {self.model!r}"
            raise ApiError(404, message, code="model_not_found", param="model")
