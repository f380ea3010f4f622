"""What every request passes before a route sees it: its id, host, origin, key, rate and size."""

from __future__ import annotations

import asyncio
import base64
import hmac
import re
import secrets
import time
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segue.serve.errors import ApiError, told
from segue.serve.settings import Settings

OPEN = ("/health", "/", "/page/")
"""Routes that need no key: whether the server lives, and the files of the page, which hold nothing of anybody's."""
UPLOADS = "/v1/files"
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}


class Keys:
    """Which key a client holds, found in a time that does not depend on it."""

    def __init__(self, keys: Sequence[str]):
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def client(self, headers: Headers, address: str) -> str:
        """A name for who asks: by the key, or where there are none by the address.

        Raises: ApiError, without a key that is known.
        """
        if not self._digests:
            return address
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":  # Label Studio knows no other way
            key = password(key)
        given = sha256((key if scheme.lower() in ("bearer", "basic") else "").encode()).digest()
        known = [hmac.compare_digest(given, digest) for digest in self._digests]
        if not any(known):
            hint = "send it as the header 'Authorization: Bearer KEY'"
            raise ApiError(
                401, f"no valid API key; {hint}", code="invalid_api_key", headers={"www-authenticate": "Bearer"}
            )
        return f"key {known.index(True)}"


class Rate:
    """How many requests each client may begin in a minute; they come back evenly."""

    def __init__(self, per_minute: int | None):
        self._per_minute = per_minute
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, client: str) -> None:
        """Count a request.

        Raises: ApiError, if the client has had its share; it says when there is more.
        """
        if self._per_minute is None:
            return
        now, each = time.monotonic(), 60 / self._per_minute
        left, since = self._left.get(client, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - since) / each)
        if left < 1:
            wait = max(1, round((1 - left) * each))
            raise ApiError(429, f"more than {self._per_minute} requests a minute", code="rate_limit_exceeded",
                           headers={"retry-after": str(wait)})  # fmt: skip
        if len(self._left) > 10_000:
            self._left = {name: kept for name, kept in self._left.items() if now - kept[1] < 60}
        self._left[client] = (left - 1, now)


class Guards:
    """The middleware around all routes. `scope["state"]` gets `request_id` and `client`."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.settings = app, settings
        self.keys, self.rate = Keys(settings.keys), Rate(settings.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        has_begun = False

        async def answer(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                own = {name for name, _ in message["headers"]}
                extra = [(name, value) for name, value in HEADERS.items() if name not in own]
                message["headers"] = [*message["headers"], *extra, (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._check(scope, headers)
            await self.app(scope, self._bounded(scope, receive), answer)
        except Exception as error:
            refusal = told(error, request_id)
            if has_begun:
                raise
            await refusal.response()(scope, receive, answer)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = hostname(headers.get("host", ""))
        if host not in self.settings.known_hosts:
            raise ApiError(
                400, "this server is not called by that name; its operator can add it with --allowed-host", code="host"
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower():
            raise ApiError(403, "pages of other origins may not ask", code="origin")
        path, address = scope["path"], (scope.get("client") or ("unknown",))[0]
        is_open = path in OPEN or path.startswith("/page/")
        scope["state"]["client"] = address if is_open else self.keys.client(headers, address)
        if not is_open:
            self.rate.take(scope["state"]["client"])
        stated = headers.get("content-length", "0")
        if not stated.isdecimal() or int(stated) > self._most(scope):
            raise self._too_large(scope)

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """The body as it comes, refused as soon as it is too large or too slow, whatever length was stated."""
        came = values = 0
        is_whole, limits = False, self.settings.limits

        async def bounded() -> Any:
            nonlocal came, values, is_whole
            if is_whole:  # what is waited for now is that the client leaves
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), limits.body_seconds)
            except TimeoutError as error:
                text = f"no more of the request's body came for {limits.body_seconds:g} seconds; send it again"
                raise ApiError(408, text, code="body_too_slow", headers={"connection": "close"}) from error
            piece = message.get("body", b"")
            is_whole = not message.get("more_body", False)
            came += len(piece)
            if came > self._most(scope):
                raise self._too_large(scope)
            # reading JSON stops all others, for as long as it has values; a large data URL is one
            values += 0 if scope["path"] == UPLOADS else sum(map(piece.count, (b",", b"[", b"{")))
            if values > limits.body_values:
                text = f"the request has more than {limits.body_values:,} values, the most allowed"
                raise ApiError(413, text, code="body_too_large", headers={"connection": "close"})
            return message

        return bounded

    def _most(self, scope: Scope) -> int:
        limits = self.settings.limits
        return limits.upload_bytes if scope["path"] == UPLOADS else limits.body_bytes

    def _too_large(self, scope: Scope) -> ApiError:
        message = f"the request has more than {self._most(scope):,} bytes, the most allowed"
        return ApiError(413, message, code="body_too_large", headers={"connection": "close"})


def password(credentials: str) -> str:
    """The password in what a client sends as `Authorization: Basic`; nothing, if there is none."""
    try:
        return base64.b64decode(credentials, validate=True).decode("utf-8").partition(":")[2]
    except ValueError:
        return ""


def hostname(host: str) -> str:
    """The name in a Host header, in lower case, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
