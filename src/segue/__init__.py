"""Segue: ask about images and videos in words; get words back, and the pixels they speak of."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Answer": "segue.output.answers",
    "Engine": "segue.engine",
    "FrameMasks": "segue.types",
    "Finished": "segue.types",
    "Media": "segue.types",
    "Message": "segue.types",
    "ObjectsFound": "segue.types",
    "Options": "segue.engine",
    "Region": "segue.types",
    "SegueError": "segue.errors",
    "TextDelta": "segue.types",
    "load": "segue.loading",
    "open_media": "segue.media",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("segue")
    if name not in _HOMES:
        raise AttributeError(f"module 'segue' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
