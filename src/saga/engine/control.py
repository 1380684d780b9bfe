"""/v1/saga/*: what a scheduler tells the engine about sessions and requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from saga.engine.asks import number, plain_id, seconds, whole_number
from saga.engine.emulated import EmulatedEngine
from saga.engine.exchange import ApiError

_PREFIXES = ("chatcmpl-", "cmpl-", "resp_", "msg_")
"""Of the ids in answers; without it, the id is the X-Request-Id of the request."""

Body = Mapping[str, Any]


def _session(body: Body) -> str:
    session = plain_id(body.get("session"))
    if session is None:
        raise ApiError(400, "session must be the id of a session", param="session")
    return session


def _request(body: Body) -> str:
    request = plain_id(body.get("request"))
    if request is None:
        raise ApiError(400, "request must be the id of a request", param="request")
    for prefix in _PREFIXES:
        request = request.removeprefix(prefix)
    return request


def _on_session(session: str, call: Callable[[], int]) -> dict[str, Any]:
    try:
        return {"session": session, "resident_tokens": call()}
    except KeyError:
        message = f"session '{session}': no request of it was seen here"
        raise ApiError(404, message, param="session") from None


def _on_request(request: str, call: Callable[[], bool]) -> dict[str, Any]:
    try:
        return {"request": request, "applied": call()}
    except KeyError:
        message = f"request '{request}': neither waiting nor running here"
        raise ApiError(404, message, param="request") from None


def retain(engine: EmulatedEngine, body: Body) -> dict[str, Any]:
    session, ttl_s = _session(body), seconds(body.get("ttl_s"), "ttl_s")
    score = None if body.get("score") is None else number(body["score"], "score")
    return _on_session(session, lambda: engine.retain(session, ttl_s, score))


def extend(engine: EmulatedEngine, body: Body) -> dict[str, Any]:
    session, ttl_s = _session(body), seconds(body.get("ttl_s"), "ttl_s")
    return _on_session(session, lambda: engine.extend(session, ttl_s))


def release(engine: EmulatedEngine, body: Body) -> dict[str, Any]:
    session = _session(body)
    return _on_session(session, lambda: engine.release(session))


def priority(engine: EmulatedEngine, body: Body) -> dict[str, Any]:
    request, value = _request(body), whole_number(body, "priority", -(1 << 31))
    if value is None:
        raise ApiError(400, "priority must be an integer; lower goes first", param="priority")
    return _on_request(request, lambda: engine.prioritise(request, value))


def preempt(engine: EmulatedEngine, body: Body) -> dict[str, Any]:
    request = _request(body)
    return _on_request(request, lambda: engine.preempt(request))


def stats(engine: EmulatedEngine, body: Body) -> dict[str, Any]:
    """The engine's figures, or where a session stands if one is named."""
    if "session" not in body:
        return engine.stats()
    session = _session(body)
    return _on_session(session, lambda: engine.resident(session))


OPERATIONS: Mapping[str, Callable[[EmulatedEngine, Body], dict[str, Any]]] = {
    "retain": retain,
    "extend": extend,
    "release": release,
    "priority": priority,
    "preempt": preempt,
    "stats": stats,
}
"""By the last part of the path. All raise ApiError."""
