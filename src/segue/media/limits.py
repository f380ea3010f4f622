"""How large an input may be."""

from __future__ import annotations

from dataclasses import dataclass, fields

from segue.errors import ConfigError, LimitError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Ceilings for one image or video, compared with its headers before any pixel is decoded.

    Raises: ConfigError, if a ceiling is below 1.
    """

    pixels: int = 100_000_000
    """Width x height of an image or of one frame; 100 million pixels decode to 300 MB."""
    frames: int = 1_000_000
    """Frames of a video: nine hours at 30 per second."""
    file_bytes: int = 16 * 2**30
    """Bytes of a file or of encoded data; of a frame folder, all frames together. 16 GiB."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ConfigError(f"Limits.{field.name} is {value}; expected 1 or more")

    def check_size(self, name: str, size: tuple[int, int]) -> None:
        """Refuse an image or frame of more pixels than allowed; `size` is (height, width).

        Raises: LimitError.
        """
        height, width = size
        if height * width > self.pixels:
            raise LimitError(
                f"{name} is {width}x{height}, {height * width:,} pixels; at most {self.pixels:,} are allowed: "
                "make it smaller, or raise Limits.pixels"
            )

    def check_frames(self, name: str, count: int) -> None:
        """Refuse a video of more frames than allowed.

        Raises: LimitError.
        """
        if count > self.frames:
            raise LimitError(
                f"{name} has more than {self.frames:,} frames, the most allowed: cut it, or raise Limits.frames"
            )

    def check_bytes(self, name: str, count: int) -> None:
        """Refuse a file or encoded data of more bytes than allowed.

        Raises: LimitError.
        """
        if count > self.file_bytes:
            raise LimitError(
                f"{name} has {count:,} bytes; at most {self.file_bytes:,} are allowed: "
                "cut it, or raise Limits.file_bytes"
            )


DEFAULT_LIMITS = Limits()
"""What holds unless a caller says otherwise."""
