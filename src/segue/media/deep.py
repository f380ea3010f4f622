"""Pictures of more than 8 bits: which they are, their own values, and the window that brings them to 8."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segue.errors import MediaError
from segue.media.deep_colours import Colours

Window = tuple[int | float, int | float]
"""The values that become black and white; those outside are cut off."""

_WHOLE = (0.0, 65535.0)
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SEPARATED = 0, 5
_UNSIGNED = 1


def is_grey(image: Image.Image) -> bool:
    """Whether a Pillow image holds grey values of more than 8 bits, integers or floating point."""
    return image.mode == "F" or image.mode.startswith("I")


def is_deep(image: Image.Image) -> bool:
    """Whether an image, opened and not loaded, has more than 8 bits; of colour pictures Pillow keeps only 8.

    Colours of print (CMYK) do not count: they are turned into RGB by Pillow, from its 8 bits.
    """
    if is_grey(image):
        return True
    if image.format == "TIFF":
        bits = _tag(image, _BITS_PER_SAMPLE)
        has_many = isinstance(bits, tuple) and any(isinstance(one, int) and one > 8 for one in bits)
        return has_many and _tag(image, _PHOTOMETRIC) != _SEPARATED
    return image.format == "PNG" and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def is_inverted(image: Image.Image) -> bool:
    """Whether grey values of more than 8 bits are darker where they are larger; Pillow turns over those of fewer."""
    return is_grey(image) and _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO


def values(image: Image.Image, name: str, colours: Colours | None = None) -> np.ndarray:
    """The picture's own values: grey `[h w]`, colours `[h w 3]`; `colours` are those of its file.

    Raises: MediaError, if it holds values that are no numbers, or colours that cannot be decoded.
    """
    found = np.asarray(image) if is_grey(image) or colours is None else colours.read(image)
    if found.dtype == np.int32 and _is_unsigned(image):
        found = found.view(np.uint32)
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise MediaError(f"{name} has pixels that are no finite numbers; save it again without them")
    return found


def window(found: np.ndarray) -> Window | None:
    """The range of values that a picture uses; None where that is half of what 16 bits hold or more, or nothing.

    Such a picture is shown as it is. Data of 12 bits in a file of 16 would be nearly black that way.
    """
    low, high = float(found.min()), float(found.max())
    is_usual = found.dtype.kind != "f" and low >= 0 and high <= _WHOLE[1]
    if is_usual and (high == low or high - low > _WHOLE[1] / 2):
        return None
    return (low, high) if high > low else (low, low + 1)


def joined(windows: Iterable[Window | None]) -> Window | None:
    """The window of several pictures that belong together; None where one of them needs none."""
    found = list(windows)
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def told(chosen: Window) -> str:
    """A window in words."""
    return f"windowed {chosen[0]:,.6g} to {chosen[1]:,.6g}"


def to_eight_bits(found: np.ndarray, chosen: Window | None, name: str) -> UInt8[np.ndarray, "*_"]:
    """Values scaled to 0 to 255 by a window, or without one by the range of 16 bits.

    Raises: MediaError, if there is no window and the values are not of that range.
    """
    if chosen is None and (chosen := window(found)) is None:
        return ((found.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = chosen
    if not high > low:
        raise MediaError(f"the window of {name} is {low:g} to {high:g}; expected a lower and a higher value")
    scaled = (found.astype(np.float64) - low) * (255 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _is_unsigned(image: Image.Image) -> bool:
    """Whether 32 bits that Pillow takes for signed are not."""
    return _tag(image, _BITS_PER_SAMPLE) == (32,) and _tag(image, _SAMPLE_FORMAT) in (None, (_UNSIGNED,))


def _tag(image: Image.Image, tag: int) -> Any:
    """The value of a TIFF's tag; None without it, and of other formats."""
    return getattr(image, "tag_v2", {}).get(tag)
