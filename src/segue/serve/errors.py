"""What went wrong, in the form that OpenAI's clients read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException as StarletteError

from segue.errors import CheckpointError, LimitError, SegueError
from segue.files import DISK_ERRORS

log = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
NO_RETRY = {"x-should-retry": "false"}
"""The stock client asks again after every 5xx, unless told that it would do the same work once more."""
LONGEST_PART = 100
"""Letters of a field's name that are told."""


class ApiError(HTTPException):
    """A refusal with its HTTP status; `param` names the field that is at fault, `code` the reason for programs.

    FastAPI lets its own exceptions pass while it reads a body, and makes a 400 of all others.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(status, message, dict(headers or {}))
        self.message, self.code, self.param = message, code, param

    def body(self) -> dict[str, Any]:
        """The body of the response."""
        kind = _TYPES.get(self.status_code, "invalid_request_error" if self.status_code < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The response."""
        return JSONResponse(self.body(), self.status_code, self.headers)


def bug(request_id: str) -> ApiError:
    """What a client is told of a mistake of ours: where to find it in the log, and nothing else."""
    return ApiError(500, f"internal error; request id {request_id}", code="internal_error", headers=NO_RETRY)


def told(error: Exception, request_id: str) -> ApiError:
    """Any exception as what a client is told of it. What is not the client's matter goes into the log alone."""
    if isinstance(error, ApiError):
        return error
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.errno in DISK_ERRORS:
        log.error("request %s failed", request_id, exc_info=error)
        message = f"the server cannot keep it: {DISK_ERRORS[cause.errno]}; tell its operator"
        return ApiError(507, message, code="storage_full", headers=NO_RETRY)
    if isinstance(error, SegueError) and not isinstance(error, CheckpointError):
        code = "limit_exceeded" if isinstance(error, LimitError) else None
        return ApiError(400, str(error), code=code)
    log.error("request %s failed", request_id, exc_info=error)
    return bug(request_id)


def refusal(code: str, message: str, param: str) -> PydanticCustomError:
    """What a check of a whole request raises that knows the field at fault."""
    return PydanticCustomError("refused", "{message}", {"code": code, "message": message, "param": param})


def not_valid(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a request, by the place where it stands. Values are not repeated.

    Of what may have several forms it is said of the one that fits furthest; names of forms are not places.
    """
    first = max(error.errors(), key=lambda one: len(one["loc"]))
    about = first.get("ctx", {})
    if first["type"] == "refused":
        return ApiError(400, about["message"], code=about["code"], param=about["param"])
    place = [str(part)[:LONGEST_PART] for part in first["loc"] if part != "body" and "[" not in str(part)]
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON", code="invalid_json")
    if first["type"] == "extra_forbidden":
        message = f"unknown parameter {'.'.join(place)!r}; it is not supported"
        return ApiError(400, message, code="unknown_parameter", param=".".join(place))
    if first["type"] == "too_long":
        message = f"{'.'.join(place)}: {about['actual_length']:,} items; at most {about['max_length']:,} are read"
        return ApiError(400, message, code="limit_exceeded", param=".".join(place))
    message = f"{'.'.join(place) or 'the body'}: {first['msg'].removeprefix('Value error, ')}"
    return ApiError(400, message, code="invalid_value", param=".".join(place) or None)


def install(app: FastAPI) -> None:
    """Have every error leave the app in one form."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, RequestValidationError):
            return not_valid(error).response()
        if isinstance(error, StarletteError) and not isinstance(error, ApiError):
            what = "there is no such route" if error.status_code == 404 else str(error.detail).lower()
            return ApiError(error.status_code, what, headers=error.headers).response()
        return told(error, request.scope["state"]["request_id"]).response()

    for kind in (ApiError, SegueError, RequestValidationError, StarletteError, Exception):
        app.add_exception_handler(kind, answer)
