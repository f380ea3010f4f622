"""Remote images and videos, from the hosts that an operator has named and from nowhere else."""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from segue.serve.errors import ApiError
from segue.serve.settings import MIB, Limits

_OPEN = ipaddress.ip_network("2000::/3")
"""The one part of IPv6 that addresses of the open net are given from; in others an IPv4 address may be hidden."""


@dataclass(frozen=True, slots=True)
class Target:
    """What an address means: taken apart once, for the check and for the connection alike."""

    host: str
    path: str
    is_secure: bool

    @property
    def port(self) -> int:
        """The port of its scheme; no other is connected to."""
        return 443 if self.is_secure else 80


class Fetcher:
    """Gets what lies at an address whose host is among `domains`, within limits of bytes and time.

    The name is resolved once, and the connection goes to the address that was checked. Redirects are not followed.
    """

    def __init__(self, domains: Collection[str], limits: Limits):
        self._domains = frozenset(domain.lower() for domain in domains)
        self._limits = limits

    async def __call__(self, url: str) -> bytes:
        """The bytes at an address.

        Raises: ApiError, for one that is not fetched from, and if it cannot be had.
        """
        target = self._target(url)
        try:
            return await asyncio.to_thread(self._get, target)
        except (OSError, http.client.HTTPException) as error:
            message = f"{target.host} does not answer as it should ({type(error).__name__})"
            raise ApiError(400, message, code="remote_url") from error

    def _target(self, url: str) -> Target:
        if not self._domains:
            message = "this server fetches nothing; send a data URL, or upload the file to /v1/files"
            raise ApiError(400, message, code="remote_url")
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            raise ApiError(400, "the address cannot be read", code="remote_url") from None
        is_secure = parts.scheme == "https"
        is_usual = parts.scheme in ("http", "https") and port in (None, 443 if is_secure else 80)
        if not is_usual or "@" in parts.netloc or host not in self._domains or not url.isascii() or " " in url:
            raise ApiError(400, "this server does not fetch from there", code="remote_url")
        return Target(host, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), is_secure)

    def _get(self, target: Target) -> bytes:
        limits, end = self._limits, time.monotonic() + self._limits.fetch_seconds
        connection = _Pinned(target, resolved(target), limits.fetch_seconds)
        # the timeout of a socket counts from one byte to the next
        ending = threading.Timer(limits.fetch_seconds, connection.end)
        ending.daemon = True
        ending.start()
        try:
            connection.request("GET", target.path, headers={"accept-encoding": "identity", "user-agent": "segue"})
            with connection.getresponse() as response:
                if response.status != 200:
                    message = f"{target.host} answers {response.status}; redirects are not followed"
                    raise ApiError(400, message, code="remote_url")
                data = bytearray()
                while piece := response.read1(MIB):
                    data += piece
                    if len(data) > limits.upload_bytes or time.monotonic() > end:
                        message = f"it is larger than {limits.upload_bytes:,} bytes, or takes too long"
                        raise ApiError(400, message, code="remote_url")
                if connection.has_ended:
                    raise TimeoutError
                return bytes(data)
        finally:
            ending.cancel()
            connection.close()


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that is known already, whatever the name would mean by now."""

    def __init__(self, target: Target, address: str, timeout: float):
        super().__init__(target.host, target.port, timeout=timeout)
        self._target, self._address = target, address
        self.has_ended = False

    def end(self) -> None:
        """Read no more, from another thread."""
        self.has_ended = True
        with suppress(OSError, AttributeError):  # there is no socket yet, or none any more
            self.sock.shutdown(socket.SHUT_RDWR)

    def connect(self) -> None:
        """Connect to the address; the certificate has to be the name's."""
        self.sock = socket.create_connection((self._address, self._target.port), self.timeout)
        if self._target.is_secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self._target.host)


def resolved(target: Target) -> str:
    """The address of a host, if all that it has are public.

    Raises: ApiError, if one is not; OSError, if it has none.
    """
    found = [str(row[4][0]) for row in socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)]
    if not all(is_public(address) for address in found):
        raise ApiError(400, "this server does not fetch from there", code="remote_url")
    return found[0]


def is_public(address: str) -> bool:
    """Whether an IP address lies in the open net, through whatever form it is written."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip.sixtofour is not None or ip not in _OPEN:
            return False
    return ip.is_global and not ip.is_multicast
