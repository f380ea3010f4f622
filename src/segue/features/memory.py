"""What anything must offer that keeps features, and the form of it that keeps the last few in memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, Protocol, runtime_checkable

from segue.features.cache import Features


@runtime_checkable
class FeatureStore(Protocol):
    """Features of media under the hash of their content and the rule by which they are shown.

    `point` says where they are taken: after the tower, or projected.
    """

    @property
    def point(self) -> Literal["tower", "projected"]:
        """Where features are taken."""
        ...

    def get(self, source: str, sampling: str) -> Features | None:
        """What was kept, or `None`."""
        ...

    def put(self, source: str, sampling: str, features: Features, *, seconds: float = 0.0) -> object:
        """Keep features of a medium that took so many seconds, if there is room."""
        ...


class MemoryStore:
    """Features of the media that were put or found last, on the device where they were computed."""

    point: Literal["tower", "projected"] = "projected"

    def __init__(self, count: int = 1):
        self.count = count
        self._kept: OrderedDict[tuple[str, str], Features] = OrderedDict()

    def get(self, source: str, sampling: str) -> Features | None:
        """What was kept, or `None`."""
        if (source, sampling) in self._kept:
            self._kept.move_to_end((source, sampling))
        return self._kept.get((source, sampling))

    def put(self, source: str, sampling: str, features: Features, *, seconds: float = 0.0) -> None:
        """Keep features of a medium; those used longest ago go."""
        self._kept[source, sampling] = features
        self._kept.move_to_end((source, sampling))
        while len(self._kept) > self.count:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Let go of all of them."""
        self._kept.clear()
