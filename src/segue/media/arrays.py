"""What people hold in Python for pixels: arrays and tensors of either order of axes, lists of frames, open files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segue.errors import MediaError
from segue.types import Media

_ROUNDING = 1e-3
"""How far beyond 0 and 1 floating point values may lie, as resizing leaves them."""


@runtime_checkable
class Array(Protocol):
    """An array or tensor."""

    def __array__(self, dtype: Any = None) -> np.ndarray:
        """Its values."""


@runtime_checkable
class OpenFile(Protocol):
    """A file that is open for reading bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Some of its bytes."""


Frame = str | Path | bytes | bytearray | Media | Image.Image | Array | OpenFile
Source = Frame | Sequence[Frame]
"""What `segue.media.open_media` takes."""


def rgb(array: Array) -> UInt8[np.ndarray, "*t h w 3"]:
    """The pixels of an array or tensor, colours last: of one that has them last already, or before height and width;
    whole numbers of 8 bits, or floating point from 0 to 1.

    Where both axes have three values, the last one is taken for the colours. What needs no change is not copied.

    Raises: MediaError, if they are no such pixels.
    """
    values = _values(array)
    if values.ndim not in (3, 4) or not values.size or 3 not in (values.shape[-1], values.shape[-3]):
        raise _no_pixels(values)
    if values.shape[-1] != 3:
        values = np.ascontiguousarray(np.moveaxis(values, -3, -1))
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # written so that NaN is refused too
            raise MediaError(
                f"an array of {values.dtype} holds values from {low:g} to {high:g}; floating point pixels go from "
                "0 to 1: divide by 255, or undo a normalisation first"
            )
        values = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        raise _no_pixels(values)
    return values


def read_open(file: OpenFile, most: int) -> bytes:
    """The bytes of an open file, at most one more than `most`; from its beginning where it can be wound back.

    Raises: MediaError, if it was opened for text, or cannot be read, because it is closed or opened for writing.
    """
    data = bytearray()
    try:
        if getattr(file, "seekable", bool)():
            file.seek(0)  # type: ignore[attr-defined]
        while len(data) <= most and (piece := file.read(most + 1 - len(data))):  # pipes give less than asked for
            if not isinstance(piece, bytes):
                told = f"the open file gives {type(piece).__name__}, not bytes; open it in binary mode ('rb')"
                raise MediaError(told)
            data += piece
    except (OSError, ValueError) as error:
        raise MediaError(f"the open file cannot be read ({error}); open it anew in binary mode ('rb')") from error
    return bytes(data)


def _values(array: Array) -> np.ndarray:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        tensor = array.detach().cpu()
        array = tensor.float() if tensor.is_floating_point() else tensor  # numpy has no bfloat16
    return np.asarray(array)


def _no_pixels(values: np.ndarray) -> MediaError:
    return MediaError(
        f"cannot take an array of {values.dtype} {values.shape} as pixels; expected RGB as uint8, or as floating "
        "point from 0 to 1: (h, w, 3) or (3, h, w) for an image, (t, h, w, 3) or (t, 3, h, w) for a video"
    )
