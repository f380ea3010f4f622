"""What a client shows: from a data URL, a file that was uploaded, or an address, to decoded pixels."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from segue.errors import LimitError, MediaError, SegueError
from segue.media import formats
from segue.serve.decoding import Decoders
from segue.serve.errors import ApiError
from segue.serve.settings import Limits
from segue.types import Media, MediaKind

_DATA = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.ASCII)
_TAKEN: dict[MediaKind, frozenset[str]] = {
    "image": frozenset({"JPEG", "PNG", "WEBP", "GIF"}),
    "video": frozenset({"mov", "matroska", "GIF", "WEBP", "PNG"}),
}
_EXPECTED = {"image": "JPEG, PNG, WebP or GIF", "video": "MP4, MOV, MKV, WebM, or an animated GIF, WebP or PNG"}
_RAISING = re.compile(r",? or raise Limits\.\w+")

PIECE = 2**22
"""Letters of base64 that are decoded at a time; a multiple of four."""
Fetch = Callable[[str], Awaitable[bytes]]
"""Gets the bytes at an address, or refuses."""


class MediaReader:
    """Decodes what clients send, and keeps what was decoded last, so that a picture of a dialogue is decoded once.

    What is kept is known by the hash of its bytes, so that nobody finds what he could not have sent.
    """

    def __init__(self, limits: Limits, decoders: Decoders, folder: Path, fetch: Fetch):
        self._limits, self._decoders, self._folder, self._fetch = limits, decoders, folder, fetch
        self._kept: OrderedDict[tuple[str, MediaKind], Media] = OrderedDict()

    async def read(self, url: str, param: str) -> bytes:
        """What a data URL holds, or what lies at an address that this server fetches from.

        Raises: ApiError, saying by `param` where in the request it stands.
        """
        if url[:5].lower() == "data:":
            return await asyncio.to_thread(_from_data_url, url, param)
        return await self._fetch(url)

    async def from_bytes(self, data: bytes, kind: MediaKind, param: str) -> Media:
        """An encoded image or video.

        Raises: ApiError.
        """
        path = self._folder / secrets.token_hex(8)
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        if (known := self._known(digest, kind)) is not None:
            return known
        try:
            await asyncio.to_thread(path.write_bytes, data)
            return await self.from_file(path, digest, kind, param)
        finally:
            path.unlink(missing_ok=True)

    async def from_file(self, path: Path, digest: str, kind: MediaKind | None, param: str) -> Media:
        """An encoded image or video in a file whose content has this SHA-256; without a `kind`, whichever it is.

        Raises: ApiError.
        """
        if kind is not None and (known := self._known(digest, kind)) is not None:
            return known
        expected = " or ".join([_EXPECTED[kind]] if kind else _EXPECTED.values())
        try:
            with path.open("rb") as file:
                found = formats.identify(file.read(formats.HEAD), "it")
            if not any(found in _TAKEN[one] for one in ([kind] if kind else _TAKEN)):
                raise MediaError(
                    f"it is {found}, which is not taken as {kind or 'image or video'}; expected {expected}"
                )
            media = await self._decoders.decode(path, kind)
        except FileNotFoundError as error:
            raise ApiError(404, f"{param}: it has just been deleted", code="no_such_media", param=param) from error
        except SegueError as error:
            code = "limit_exceeded" if isinstance(error, LimitError) else "invalid_media"
            # here fewer formats are taken than elsewhere, and limits are the operator's
            text = _RAISING.sub("", str(error)).replace(formats.EXPECTED, expected)
            raise ApiError(400, f"{param}: {text}", code=code, param=param) from error
        self._keep(digest, media)
        return media

    def forget(self, digest: str) -> None:
        """Let go of the pixels of what was deleted."""
        for kind in _TAKEN:
            self._kept.pop((digest, kind), None)

    def _known(self, digest: str, kind: MediaKind) -> Media | None:
        if (digest, kind) in self._kept:
            self._kept.move_to_end((digest, kind))
        return self._kept.get((digest, kind))

    def _keep(self, digest: str, media: Media) -> None:
        self._kept[digest, media.kind] = media
        while sum(_size(one) for one in self._kept.values()) > self._limits.decoded_bytes:
            self._kept.popitem(last=False)


def _from_data_url(url: str, param: str) -> bytes:
    """The bytes in a data URL, decoded in pieces, between which other threads have their turn.

    Raises: ApiError.
    """
    head = _DATA.match(url[:256])
    try:
        if head is None:
            raise ValueError("no head of a base64 data URL")
        data = url[head.end() :].encode("ascii").translate(None, b"\r\n")
        pieces = [data[start : start + PIECE] for start in range(0, len(data), PIECE)]
        if any(b"=" in piece for piece in pieces[:-1]):
            raise ValueError("an end before the end")
        return b"".join(base64.b64decode(piece, validate=True) for piece in pieces)
    except ValueError as error:
        message = f"{param}: not a base64 data URL; expected data:image/png;base64,..."
        raise ApiError(400, message, code="invalid_data_url", param=param) from error


def _size(media: Media) -> int:
    assert isinstance(media.source, np.ndarray)
    return media.source.nbytes
