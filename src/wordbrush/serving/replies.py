"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from wordbrush.errors import ImageError, UsageError, WordbrushError
from wordbrush.serving.jobs import WITHHELD, DiskFullError, QueueFullError

_CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    409: "conflict",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "queue_full",
    503: "not_ready",
    507: "disk_full",
}
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_TYPES_BY_CODE = {WITHHELD: "image_generation_user_error"}
"""Where the code says more than the status does."""
_log = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    """What went wrong, in one line, and a word for programs."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorReply(BaseModel):
    """The body of every reply that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """A reply that is an error; `code` is derived from the status unless given."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        self.detail = error_detail(status, message, code)


def client_left() -> ApiError:
    """What is noted of a request whose client hung up; nobody reads it."""
    return ApiError(499, "the client went away", code="client_closed_request")


def error_detail(status: int, message: str, code: str | None = None) -> ErrorDetail:
    """The error object for an HTTP status."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    kind = _TYPES_BY_CODE.get(code or "", kind)
    return ErrorDetail(message=" ".join(message.split()), type=kind, code=code or _CODES.get(status, kind))


def error_response(error: ApiError) -> JSONResponse:
    """The error as an HTTP response."""
    body = ErrorReply(error=error.detail).model_dump()
    return JSONResponse(body, status_code=error.status, headers=error.headers)


def add_error_replies(app: FastAPI) -> None:
    """Answer every exception in that shape: no traceback, no path, no other format."""
    for kind in (
        ApiError,
        WordbrushError,
        HTTPException,
        RequestValidationError,
        ClientDisconnect,
        Exception,
    ):
        app.add_exception_handler(kind, _reply)


async def _reply(_: Request, error: Exception) -> JSONResponse:
    return error_response(_translate(error))


def _translate(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), headers={"Retry-After": str(error.retry_after)})
    if isinstance(error, DiskFullError):
        return ApiError(507, str(error), headers={"Retry-After": "60"})
    if isinstance(error, ClientDisconnect):
        return client_left()
    if isinstance(error, ImageError):
        return ApiError(400, str(error), code="invalid_image")
    if isinstance(error, UsageError):
        return ApiError(400, str(error))
    if isinstance(error, RequestValidationError):
        return ApiError(400, describe_validation(error.errors()))
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        return ApiError(error.status_code, str(error.detail), headers=headers)
    if isinstance(error, WordbrushError):
        _log.error("%s", error)
    return ApiError(500, "the service failed at this request: its log says why", code="internal_error")


def describe_validation(errors: Any) -> str:
    """The first complaint of pydantic in one line, with the field's name."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    return f"{where or 'body'}: {first['msg'][:1].lower()}{first['msg'][1:]}"
