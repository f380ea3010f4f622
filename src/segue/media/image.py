"""Still images and animations: from a file's header to RGB pixels as a viewer shows them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
from segue.media import checksums, deep, formats
from segue.media.deep import Window
from segue.media.deep_colours import Colours
from segue.media.limits import DEFAULT_LIMITS, Limits

# Opened by class and not by `Image.open`, which warns about large images before their size can be asked, and knows
# formats that start other programs.
_OPENERS: dict[str, Callable[[Any], ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "GIF": GifImageFile,
}
_MOVING = frozenset({"GIF", "WEBP", "PNG", "TIFF", "AVIF"})
# What Pillow raises on damaged files, found by feeding it such files.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    MemoryError,
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
_TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda values: values[:, ::-1],
    3: lambda values: values[::-1, ::-1],
    4: lambda values: values[::-1],
    5: lambda values: values.swapaxes(0, 1),
    6: lambda values: np.rot90(values, -1),
    7: lambda values: values[::-1, ::-1].swapaxes(0, 1),
    8: lambda values: np.rot90(values),
}
"""The same for values of any kind, of which Pillow cannot turn all."""


class Stored(NamedTuple):
    """What a file holds, before it is made RGB.

    `values` are grey levels or places in the palette, `[h w]`; `[h w c]` where it has colours or transparency.
    `is_lossy` says that its format loses some (JPEG), `palette` holds red, green and blue of each place, and `pictures`
    is how many of one size there are.
    """

    values: np.ndarray
    is_lossy: bool
    palette: UInt8[np.ndarray, "n 3"] | None
    pictures: int


@dataclass(frozen=True, slots=True)
class Probed:
    """What an encoded image is: (height, width) as shown, how many pictures it holds, at what rate, and how deep ones
    are brought to 8 bits. `notes` say for people what is not taken as it stands.
    """

    size: tuple[int, int]
    count: int = 1
    fps: float | None = None
    window: Window | None = None
    notes: tuple[str, ...] = ()


def probe(
    source: Path | bytes, name: str, limits: Limits, *, first: bool = False, window: Window | None = None
) -> Probed:
    """What an encoded image is, from its header; only pictures of more than 8 bits are decoded, to find their range.

    Animations, and pages of one size, are as many pictures as they have; with `first` they are the first alone.

    Raises: MediaError, LimitError.
    """
    with _opened(source, name) as image:
        size = _shown_size(image)
        limits.check_size(name, size)
        count, notes = _pictures(image, name, is_first=first)
        limits.check_frames(name, count)
        milliseconds = image.info.get("duration") if count > 1 else None
    fps = 1000 / milliseconds if isinstance(milliseconds, int | float) and milliseconds > 0 else None
    with _opened(source, name) as image:
        is_deep = deep.is_deep(image)
    if not is_deep:
        unused = ("the window is not used, for it has 8 bits, or colours of print (CMYK)",) if window else ()
        return Probed(size, count, fps, notes=notes + unused)
    found = window or deep.joined(deep.window(values) for values in _stored(source, name, range(count)))
    return Probed(size, count, fps, found, (*notes, deep.told(found)) if found else notes)


def decode(
    source: Path | bytes,
    name: str,
    size: tuple[int, int],
    *,
    indices: Sequence[int] = (0,),
    window: Window | None = None,
) -> Iterator[tuple[int, float, UInt8[np.ndarray, "h w 3"]]]:
    """The pictures of these ascending numbers: number, seconds since the first (NaN without a clock), RGB pixels.

    `window` is what `probe` found.

    Raises: MediaError, also if a header states another (height, width) than `size`; then nothing is decoded.
    """
    checksums.check(source, name)
    with _opened(source, name) as image:
        has_clock = image.format not in ("TIFF", "DICOM") or getattr(image, "n_frames", 1) == 1
        seconds = 0.0 if has_clock else float("nan")
        colours = None
        for index in range(indices[-1] + 1 if indices else 0):
            _go_to(image, index, name)
            height, width = _shown_size(image)
            if (height, width) != size:
                raise MediaError(
                    f"{name} is {width}x{height} where {size[1]}x{size[0]} was expected; all frames of a video must "
                    "have one size (pictures that are no video: --as images), and a file must not change while it is "
                    "read"
                )
            if index in indices:
                colours = colours or (Colours(source, name) if deep.is_deep(image) else None)
                yield index, seconds, rgb(image, name, colours=colours, window=window)
            elif image.format == "WEBP":
                _loaded(image, name)  # only then does it know its duration
            milliseconds = image.info.get("duration")
            if isinstance(milliseconds, int | float) and milliseconds >= 0:
                seconds += milliseconds / 1000
            else:
                seconds = float("nan")


def rgb(
    image: Image.Image, name: str, *, colours: Colours | None = None, window: Window | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of a Pillow image of any mode, with EXIF orientation applied.

    Transparency is dropped, not blended, and ICC profiles are not applied, as in the code the models were trained
    with. More than 8 bits are brought to 8 by `window`, without one by the whole range of 16 bits. `colours` are those
    of the file that the image was opened from; without them Pillow's own 8 bits of a deep colour picture are taken.

    Raises: MediaError, if the pixels cannot be decoded.
    """
    is_deep = deep.is_grey(image) or (colours is not None and deep.is_deep(image))  # of a loaded one it cannot be told
    is_as_stored = is_deep and not deep.is_grey(image)
    turn = _UPRIGHT.get(_stated_orientation(image) if is_as_stored else _orientation(image))
    try:
        image.load()
        if is_deep:
            pixels = deep.to_eight_bits(deep.values(image, name, colours), window, name)
            image = Image.fromarray(~pixels if deep.is_inverted(image) else pixels)
        # Pillow warns when it drops the transparency of a palette; dropping it is what we want.
        image = image.copy()
        image.info.pop("transparency", None)
        image = image.convert("RGB")
    except _DAMAGE as error:
        raise _damaged(name, error) from error
    return np.array(image if turn is None else image.transpose(turn))


def stored(source: Path | bytes, limits: Limits = DEFAULT_LIMITS) -> Stored:
    """The first picture of a file as it is stored, with EXIF orientation applied.

    Raises: MediaError, if it cannot be read; LimitError.
    """
    name = str(source) if isinstance(source, Path) else "<bytes>"
    checksums.check(source, name)
    with _opened(source, name) as image:
        limits.check_size(name, (image.height, image.width))
        count, _ = _pictures(image, name, is_first=False)
        turn = _TURNED.get(_orientation(image))
        try:
            image.load()
            values = np.asarray(image)
            palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3) if image.mode == "P" else None
        except _DAMAGE as error:
            raise _damaged(name, error) from error
    return Stored(values if turn is None else turn(values), image.format == "JPEG", palette, count)


def stored_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image as its file holds it, before EXIF orientation.

    Raises: MediaError.
    """
    with _opened(path, str(path)) as image:
        return image.height, image.width


def orientation(path: Path) -> int:
    """How EXIF says that a file's picture is to be turned, 1 (not at all) to 8.

    Raises: MediaError.
    """
    with _opened(path, str(path)) as image:
        return _orientation(image)


def _stored(source: Path | bytes, name: str, indices: Sequence[int]) -> Iterator[np.ndarray]:
    with _opened(source, name) as image:
        colours = Colours(source, name)
        for index in indices:
            _go_to(image, index, name)
            _loaded(image, name)
            yield deep.values(image, name, colours)


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    """The image with its header read and its pixels not."""
    with formats.reader(source) as file:
        kind = formats.identify(file.read(formats.HEAD), name)
        if kind not in formats.IMAGE_FORMATS:
            raise MediaError(f"{name} is a video ({kind}) where an image was expected")
        file.seek(0)
        opener = _OPENERS.get(kind) or _extra_opener(kind, name)
        try:
            image = opener(file)
        except _DAMAGE as error:
            if found := _unknown_pixels(error):
                raise _unsupported(name, found) from error
            raise MediaError(f"{name} is a damaged {kind} image: {error}; save or copy it again") from error
        yield image


def _extra_opener(kind: str, name: str) -> Callable[[Any], Any]:
    """What opens a format for which not every installation has a decoder.

    Raises: MediaError, naming what to install.
    """
    try:
        if kind == "AVIF":
            from PIL import AvifImagePlugin

            if not AvifImagePlugin.SUPPORTED:
                raise ImportError("Pillow was built without it")
            return AvifImagePlugin.AvifImageFile
        if kind == "HEIC":
            from pillow_heif import HeifImageFile

            return HeifImageFile
        from segue.media.dicom import DicomImage
    except ImportError as error:
        extra = {"HEIC": "heif", "DICOM": "dicom"}.get(kind)
        how = f"install segue[{extra}]" if extra else "install a newer Pillow"
        raise MediaError(
            f"{name} is a {kind} image, for which there is no decoder here; {how}, or save it as PNG"
        ) from (error)
    return DicomImage


def _pictures(image: Image.Image, name: str, *, is_first: bool) -> tuple[int, tuple[str, ...]]:
    """How many pictures are taken of a file, and what is to be said of it."""
    if image.format not in _MOVING and image.format != "DICOM":
        return 1, ()
    try:
        count = max(1, int(getattr(image, "n_frames", 1)))
        if count > 1 and image.format == "TIFF" and len({_page_size(image, page) for page in range(count)}) > 1:
            return 1, (f"the first of {count} pages, which differ in size",)
        image.seek(0)
        if image.format == "WEBP" and count > 1 and not is_first:
            image.load()
    except _DAMAGE as error:
        raise _damaged(name, error) from error
    if is_first and count > 1:
        return 1, (f"the first of {count} {_parts(image)}",)
    return count, ()


def told_of_several(image: Image.Image) -> tuple[str, ...]:
    """What is to be said of a Pillow image that is one of several in its file."""
    try:
        count = _count_anew(image) if image.format in ("GIF", "TIFF") else getattr(image, "n_frames", 1)
    except _DAMAGE:
        return ()  # its file is closed
    if image.format not in _MOVING or count < 2:
        return ()
    place = "the first" if image.tell() == 0 else f"number {image.tell() + 1}"
    return (f"{place} of {count} {_parts(image)}",)


def _count_anew(image: Any) -> int:
    """How many pictures the file of an image holds; asked itself, Pillow's image would forget how it was changed."""
    file = image.fp if image.fp is not None else image._fp
    position = file.tell()
    try:
        file.seek(0)
        return int(getattr(_OPENERS[image.format](file), "n_frames", 1))
    finally:
        file.seek(position)


def _parts(image: Image.Image) -> str:
    return "pages" if image.format == "TIFF" else "frames"


def _page_size(image: Image.Image, page: int) -> tuple[int, int]:
    image.seek(page)
    return image.size


def _go_to(image: Image.Image, index: int, name: str) -> None:
    try:
        if index or image.tell():
            image.seek(index)
    except _DAMAGE as error:
        raise MediaError(f"{name} breaks off after {index} frames: {error}; save or copy it again") from error


def _loaded(image: Image.Image, name: str) -> None:
    try:
        image.load()
    except _DAMAGE as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: BaseException) -> MediaError:
    if found := _unknown_pixels(error):
        return _unsupported(name, found)
    return MediaError(f"{name} is damaged or incomplete: {error}; save or copy it again")


def _unknown_pixels(error: BaseException) -> str | None:
    """What values a TIFF has for a pixel, in words, if an error of Pillow is that it does not know them."""
    if str(error) != "unknown pixel mode" or not isinstance(error.__cause__, KeyError):
        return None
    _, _, kinds, _, bits, _ = error.__cause__.args[0]  # what Pillow looked up
    return f"{len(bits)} of {max(bits)} bits" + (", floating point" if 3 in kinds else "")


def _unsupported(name: str, found: str) -> MediaError:
    return MediaError(
        f"{name} is a TIFF image of a kind that is not supported (values of a pixel: {found}); save it with 8 or 16 "
        "bits in grey or RGB, or in grey with 32"
    )


def _shown_size(image: Image.Image) -> tuple[int, int]:
    return (image.width, image.height) if _orientation(image) >= 5 else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    """How Pillow's pixels are to be turned: the EXIF orientation, 1 (upright) to 8."""
    return 1 if image.format == "TIFF" else _stated_orientation(image)  # Pillow turns TIFF itself


def _stated_orientation(image: Image.Image) -> int:
    """The EXIF orientation; of a TIFF only as long as it is not loaded."""
    # The base method leaves out EXIF behind a PNG's pixels, which would decode them first.
    try:
        stated = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:
        return 1  # Unreadable EXIF does not make the pixels unreadable; viewers ignore it too.
    return int(stated) if isinstance(stated, int) and 1 <= stated <= 8 else 1
