"""How a server is run, and what it lets a client ask for."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from segue.errors import ConfigError
from segue.reading import read_text

MIB = 2**20
KEYS_VARIABLE = "SEGUE_API_KEYS"
SHORTEST_KEY = 16
"""Letters of a key; a shorter one could be guessed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Ceilings for what clients send and ask for; each is checked before what it bounds is fetched, decoded or run."""

    body_bytes: int = 64 * MIB
    """Of a request that is no upload."""
    body_values: int = 3_000_000
    """Numbers, texts, lists and objects in a body of JSON, as far as its commas and brackets tell."""
    body_seconds: float = 30.0
    """Between two pieces of a body."""
    upload_bytes: int = 512 * MIB
    stored_bytes: int = 4096 * MIB
    """Of all that clients have sent to be kept, together."""
    messages: int = 64
    media: int = 8
    """Images and videos of one request."""
    regions: int = 16
    """Marked in images of one request."""
    objects: int = 64
    """Drawn into a clip."""
    choices: int = 8
    """Answers to one request."""
    letters: int = 100_000
    phrases: int = 16
    pixels: int = 40_000_000
    """Of an image or a frame."""
    frames: int = 3000
    """Of a video."""
    decoded_bytes: int = 1024 * MIB
    """Of a video, all frames decoded: 1,100 frames of 640x480; and of all that was decoded last and is kept."""
    frames_shown: int = 64
    """Frames of a video that the language model sees."""
    frames_with_probabilities: int = 64
    """Frames of a video whose probabilities may be asked for."""
    tiles: int = 12
    tokens: int = 2048
    """Of an answer; a request for more gets as many."""
    decode_seconds: float = 60.0
    """For which an image or video may be decoded."""
    decoder_bytes: int = 6144 * MIB
    """Of address space of the process that decodes."""
    deadline_seconds: float = 300.0
    """After which an answer is given up, its time in the queue included."""
    fetch_seconds: float = 30.0
    """For which a remote file may be fetched."""
    waiting: int = 64
    """Requests in the queue."""
    kept_seconds: float = 3600.0
    """After which uploaded files and sessions that nobody uses are forgotten."""
    sessions: int = 64
    """Of each client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where a server listens, to whom, and how much it does at a time.

    Without `keys` anybody who reaches it may ask, so that it listens to this machine alone. `hosts` are the names by
    which clients may call it; others are refused, so that no web page can reach it by a name of its own.
    `media_domains` are the hosts that images and videos may be fetched from. `requests_per_minute` is for each key.
    After `idle_seconds` without a request a model's weights leave memory, until there is one.

    Raises: ConfigError, for an address that others reach and no key, and for a key that could be guessed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = field(default=(), repr=False)
    hosts: tuple[str, ...] = ()
    media_domains: tuple[str, ...] = ()
    rows: int = 8
    requests_per_minute: int | None = None
    idle_seconds: float | None = None
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not self.keys and not is_loopback(self.host):
            raise ConfigError(
                f"{self.host} can be reached from other machines and there is no key; give a file of keys with "
                f"--api-keys, set {KEYS_VARIABLE}, or listen on 127.0.0.1"
            )
        short = [key for key in self.keys if len(key) < SHORTEST_KEY or not re.fullmatch(r"[!-~]+", key)]
        if short:
            raise ConfigError(
                f"{len(short)} of {len(self.keys)} keys are shorter than {SHORTEST_KEY} characters, or hold spaces or "
                'others than ASCII; make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )

    @property
    def known_hosts(self) -> frozenset[str]:
        """The names, in lower case and without a port, that a request may be sent to."""
        return frozenset(name.lower() for name in (*self.hosts, self.host, "localhost", "127.0.0.1", "::1"))


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_keys(path: Path | None) -> tuple[str, ...]:
    """The keys in a file, one a line, with those of the environment, separated by commas. Lines with # are comments.

    Raises: ConfigError, if the file cannot be read or holds no key.
    """
    known = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",")]
    if path is not None:
        try:
            lines = [line.strip() for line in read_text(path, MIB).splitlines()]
        except (OSError, ValueError) as error:
            raise ConfigError(f"the keys in {path} cannot be read: {error}") from error
        lines = [line for line in lines if line and not line.startswith("#")]
        if not lines:
            raise ConfigError(f"{path} holds no key; write one a line")
        known += lines
    return tuple(key for key in dict.fromkeys(known) if key)
