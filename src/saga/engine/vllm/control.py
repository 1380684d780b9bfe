"""What the engine does when a control message arrives (``/v1/saga/*``).

Requests and answers are those of the emulated engine (``saga.engine.control``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from saga.engine.vllm.hints import MAX_TTL_S, chance, duration, plain_id
from saga.engine.vllm.scheduler import RetainingScheduler

_PREFIXES = ("chatcmpl-", "cmpl-", "resp_", "msg_")
"""Of the ids in answers; without it, the id is the X-Request-Id of the request."""

Body = Mapping[str, Any]
Answer = dict[str, Any]


class Refused(Exception):
    """Nothing was done; status, reason, and the field that is wrong."""

    def __init__(self, status: int, reason: str, param: str | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.param = param


def answer(scheduler: Any, op: str, body: Body) -> Answer:
    """Never raises: ``{"status": ...}`` with either ``answer``, or ``reason`` and ``param``."""
    if not isinstance(scheduler, RetainingScheduler):
        reason = "vLLM was not started with --scheduler-cls saga.engine.vllm.Scheduler"
        return {"status": 501, "reason": reason, "param": None}
    if op not in OPERATIONS:
        return {"status": 404, "reason": f"'{op}' is no operation", "param": None}
    try:
        return {"status": 200, "answer": OPERATIONS[op](scheduler, body)}
    except Refused as refused:
        return {"status": refused.status, "reason": str(refused), "param": refused.param}
    finally:
        scheduler.keeper.events.flush()


def retain(scheduler: RetainingScheduler, body: Body) -> Answer:
    """``ttl_s`` 0: the session is only scored."""
    session, ttl_s = _session(scheduler, body), _ttl_s(body)
    score = None if body.get("score") is None else chance(body["score"])
    if score is None and body.get("score") is not None:
        raise Refused(400, "score must be a finite number", "score")
    scheduler.keeper.retain(session, ttl_s, score)
    return _resident(scheduler, session)


def extend(scheduler: RetainingScheduler, body: Body) -> Answer:
    session, ttl_s = _session(scheduler, body), _ttl_s(body)
    scheduler.keeper.extend(session, ttl_s)
    return _resident(scheduler, session)


def release(scheduler: RetainingScheduler, body: Body) -> Answer:
    session = _session(scheduler, body)
    answer = _resident(scheduler, session)
    scheduler.keeper.release(session)
    return answer


def priority(scheduler: RetainingScheduler, body: Body) -> Answer:
    value = body.get("priority")
    if isinstance(value, bool) or not isinstance(value, int) or not abs(value) <= 1 << 31:
        raise Refused(400, "priority must be an integer; lower goes first", "priority")
    return _on_requests(scheduler, body, lambda request: scheduler.prioritise(request, value))


def preempt(scheduler: RetainingScheduler, body: Body) -> Answer:
    return _on_requests(scheduler, body, scheduler.preempt)


def stats(scheduler: RetainingScheduler, body: Body) -> Answer:
    """The engine's figures, or where a session stands if one is named."""
    if "session" in body:
        return _resident(scheduler, _session(scheduler, body))
    return scheduler.stats()


OPERATIONS: Mapping[str, Callable[[RetainingScheduler, Body], Answer]] = {
    "retain": retain,
    "extend": extend,
    "release": release,
    "priority": priority,
    "preempt": preempt,
    "stats": stats,
}
"""By the last part of the path. All raise Refused."""


def _session(scheduler: RetainingScheduler, body: Body) -> str:
    session = plain_id(body.get("session"))
    if session is None:
        raise Refused(400, "session must be the id of a session", "session")
    if not scheduler.keeper.knows(session):
        raise Refused(404, f"session '{session}': no request of it was seen here", "session")
    return session


def _ttl_s(body: Body) -> float:
    ttl_s = duration(body.get("ttl_s"))
    if ttl_s is None:
        reason = f"ttl_s must be a number of seconds that is not negative ({MAX_TTL_S:g} at most)"
        raise Refused(400, reason, "ttl_s")
    return ttl_s


def _resident(scheduler: RetainingScheduler, session: str) -> Answer:
    return {"session": session, "resident_tokens": scheduler.keeper.resident(session)}


def _on_requests(scheduler: RetainingScheduler, body: Body, call: Callable[[Any], bool]) -> Answer:
    """One request of a client can be several to vLLM."""
    name = plain_id(body.get("request"))
    if name is None:
        raise Refused(400, "request must be the id of a request", "request")
    name = _bare(name)
    found = [request for request in scheduler.requests.values() if _is(request.request_id, name)]
    if not found:
        reason = f"request '{name}': neither waiting nor running here"
        raise Refused(404, reason, "request")
    applied = [call(request) for request in found]
    return {"request": name, "applied": any(applied)}


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _is(internal: str, name: str) -> bool:
    """vLLM appends a number and eight random characters to the id that it gives to clients."""
    bare = _bare(internal)
    return bare == name or bare.startswith(f"{name}-")
