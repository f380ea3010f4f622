"""Segue: ask about images and videos in words; get words back, and the pixels they speak of."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what is imported when it is asked for, as checkers and editors see it
    from segue.engine import Engine as Engine
    from segue.errors import SegueError as SegueError
    from segue.loading import load as load
    from segue.media import open_media as open_media
    from segue.options import Options as Options
    from segue.output.answers import Answer as Answer
    from segue.types import Finished as Finished
    from segue.types import FrameMasks as FrameMasks
    from segue.types import Media as Media
    from segue.types import Message as Message
    from segue.types import ObjectsFound as ObjectsFound
    from segue.types import Region as Region
    from segue.types import TextDelta as TextDelta

    __version__: str

_HOMES = {
    "Answer": "segue.output.answers",
    "Engine": "segue.engine",
    "FrameMasks": "segue.types",
    "Finished": "segue.types",
    "Media": "segue.types",
    "Message": "segue.types",
    "ObjectsFound": "segue.types",
    "Options": "segue.options",
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
