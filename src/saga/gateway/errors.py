"""Errors in the form that each API's clients dispatch on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

Dialect = Literal["openai", "anthropic"]

ANTHROPIC_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
OPENAI_TYPES: Mapping[int, str] = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    413: "RequestTooLargeError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
}


class GatewayError(Exception):
    """What a client is told instead of an answer. ``retry_after_s``: 1 to 60, whole seconds (longer
    ones make some agents give up). ``code``: what programs can tell it by."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(max(1, min(60, retry_after_s)))


def document(error: GatewayError, dialect: Dialect) -> dict[str, Any]:
    """The error as the API's clients expect it."""
    if dialect == "anthropic":
        others = "invalid_request_error" if error.status < 500 else "api_error"
        kind = error.code or ANTHROPIC_TYPES.get(error.status, others)
        return {"type": "error", "error": {"type": kind, "message": error.message}}
    others = "BadRequestError" if error.status < 500 else "InternalServerError"
    kind = OPENAI_TYPES.get(error.status, others)
    return {
        "error": {
            "message": error.message,
            "type": kind,
            "param": error.param,
            "code": error.code or error.status,
        }
    }


def body(error: GatewayError, dialect: Dialect) -> bytes:
    return msgspec.json.encode(document(error, dialect))


def sse(error: GatewayError, dialect: Dialect) -> bytes:
    """The error as the last event of a stream that has begun already."""
    return _event(body(error, dialect), dialect)


def relayed(status: int, data: bytes, dialect: Dialect) -> bytes:
    """An engine's own error as such an event; ours in its place if it is no JSON object."""
    try:
        msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return sse(GatewayError(502, f"the engine answered {status}"), dialect)
    return _event(b" ".join(data.splitlines()), dialect)


def _event(data: bytes, dialect: Dialect) -> bytes:
    if dialect == "anthropic":
        return b"event: error\ndata: " + data + b"\n\n"
    return b"data: " + data + b"\n\n"


def keepalive(dialect: Dialect) -> bytes:
    """What keeps a stream alive while nothing is to be said."""
    if dialect == "anthropic":
        return b'event: ping\ndata: {"type": "ping"}\n\n'
    return b": keepalive\n\n"
