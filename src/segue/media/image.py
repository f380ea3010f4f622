"""Still images: from a file's header to RGB pixels as a viewer shows them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from segue.errors import MediaError
from segue.media import formats
from segue.media.limits import Limits

# Opened by class and not by `Image.open`, which warns about large images before their size can be asked.
_OPENERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "GIF": GifImageFile,
}
# What Pillow raises on damaged files, found by feeding it such files.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def probe(source: Path | bytes, name: str, limits: Limits) -> tuple[int, int]:
    """(height, width) of an encoded image after EXIF orientation, from its header alone.

    Raises: MediaError, LimitError.
    """
    with _opened(source, name) as image:
        size = _shown_size(image)
    limits.check_size(name, size)
    return size


def decode(source: Path | bytes, name: str, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB pixels of an encoded image; of an animation or a file with several pages, the first.

    Raises: MediaError, also if the header states another (height, width) than `size`; then nothing is decoded.
    """
    with _opened(source, name) as image:
        height, width = _shown_size(image)
        if (height, width) != size:
            raise MediaError(
                f"{name} is {width}x{height} where {size[1]}x{size[0]} was expected; all frames of a video must have "
                "one size, and a file must not change while it is read"
            )
        return rgb(image, name)


def rgb(image: Image.Image, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of a Pillow image of any mode, with EXIF orientation applied.

    Transparency is dropped, not blended, and ICC profiles are not applied, as in the code the models were trained
    with. 16-bit grey is scaled to 8 bits, not clipped.

    Raises: MediaError, if the pixels cannot be decoded or have no defined white (floating point, 32-bit integers).
    """
    turn = _UPRIGHT.get(_orientation(image))
    try:
        image.load()
        if image.mode == "F" or image.mode.startswith("I"):
            image = Image.fromarray(_eight_bits(np.asarray(image), name))
        # Pillow warns when it drops the transparency of a palette; dropping it is what we want.
        image.info.pop("transparency", None)
        image = image.convert("RGB")
    except _DAMAGE as error:
        raise MediaError(f"{name} is damaged or incomplete: {error}; save or copy it again") from error
    return np.array(image if turn is None else image.transpose(turn))


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[ImageFile.ImageFile]:
    """The image with its header read and its pixels not."""
    with formats.reader(source) as file:
        kind = formats.identify(file.read(16), name)
        if kind not in _OPENERS:
            raise MediaError(f"{name} is a video ({kind}) where an image was expected")
        file.seek(0)
        try:
            image = _OPENERS[kind](file)
        except _DAMAGE as error:
            raise MediaError(f"{name} is a damaged {kind} image: {error}; save or copy it again") from error
        yield image


def _shown_size(image: Image.Image) -> tuple[int, int]:
    return (image.width, image.height) if _orientation(image) >= 5 else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8."""
    # Pillow turns TIFF itself. The base method leaves out EXIF behind a PNG's pixels, which would decode them first.
    if image.format == "TIFF":
        return 1
    try:
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:
        return 1  # Unreadable EXIF does not make the pixels unreadable; viewers ignore it too.


def _eight_bits(pixels: np.ndarray, name: str) -> UInt8[np.ndarray, "h w"]:
    if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > 65535:
        raise MediaError(f"{name} has {pixels.dtype} pixels without a defined white; save it with 8 or 16 bits")
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
