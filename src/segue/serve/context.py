"""What all routes of one server share."""

from __future__ import annotations

from dataclasses import dataclass

from segue.serve.errors import ApiError
from segue.serve.media import MediaReader
from segue.serve.metrics import Metrics
from segue.serve.scheduler import Scheduler
from segue.serve.settings import Limits, Settings


@dataclass(frozen=True, slots=True)
class Context:
    """The model under its name, and what answers for it."""

    model: str
    settings: Settings
    scheduler: Scheduler
    media: MediaReader
    metrics: Metrics

    @property
    def limits(self) -> Limits:
        """What clients may ask for."""
        return self.settings.limits

    def check_model(self, name: str) -> None:
        """Refuse a model that is not served.

        Raises: ApiError.
        """
        if name != self.model:
            message = f"there is no model {name[:100]!r} here; this server has {self.model!r}"
            raise ApiError(404, message, code="model_not_found", param="model")
