"""Requests that leave through ``httpx`` or ``httpx2`` say whose step they are.

Both are in use: the SDKs of OpenAI and Anthropic have moved from the one to the other. Headers go
to ``SAGA_BASE_URL`` only, or while that is not set, to whatever is asked by a model API's path.
"""

from __future__ import annotations

import functools
import os
from typing import Any, Final
from urllib.parse import urlsplit

from saga import wire
from saga.adapters.identity import Answered, Step, current_step
from saga.adapters.silence import Undo, note

BASE_URL: Final = "SAGA_BASE_URL"
MODEL_PATHS: Final = ("/chat/completions", "/completions", "/responses", "/messages")
CREDENTIALS: Final = ("authorization", "x-api-key")
_CLIENTS: Final = ("Client", "AsyncClient")
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_PORTS: Final = {"http": 80, "https": 443}


def install(module: Any) -> Undo:
    """Hooks into the clients of ``httpx`` or of a module like it; what is given back takes the
    hooks out again."""
    undos = [_hook(getattr(module, name)) for name in _CLIENTS]

    def undo() -> None:
        for each in undos:
            each()

    return undo


def _hook(client: Any) -> Undo:
    send = client.send
    active = True

    if client.__name__.startswith("Async"):

        @functools.wraps(send)
        async def hooked(*args: Any, **kwargs: Any) -> Any:
            request, step = _before(args, kwargs) if active else (None, None)
            response = await send(*args, **kwargs)
            _after(step, request, response)
            return response

    else:

        @functools.wraps(send)
        def hooked(*args: Any, **kwargs: Any) -> Any:
            request, step = _before(args, kwargs) if active else (None, None)
            response = send(*args, **kwargs)
            _after(step, request, response)
            return response

    def undo() -> None:
        nonlocal active
        active = False  # somebody may have wrapped it since, and keep it
        if client.send is hooked:
            client.send = send

    client.send = hooked
    return undo


def _before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Step | None]:
    """The request that is being sent and the step it is; the request's headers say so, too."""
    try:
        step = current_step()
        request = args[1] if len(args) > 1 else kwargs.get("request")
        if step is None or request is None or not is_addressed(str(request.url)):
            return None, None
        add_headers(request.headers, step.identity.headers())
        return request, step
    except Exception as error:
        note("a request's headers", error)
        return None, None


def _after(step: Step | None, request: Any, response: Any) -> None:
    """Remembers the gateway that answered, if it is one of SAGA."""
    if step is None:
        return
    try:
        session = response.headers.get(wire.SESSION_HEADER)
        if session:
            sent = request.headers
            credentials = tuple((name, sent[name]) for name in CREDENTIALS if name in sent)
            step.answered = Answered(gateway_of(str(request.url)), credentials, session)
    except Exception as error:
        note("an answer's headers", error)


def add_headers(headers: Any, ours: dict[str, str]) -> None:
    """Adds those that the application did not set; none where it told all in one header."""
    if wire.CONTEXT_HEADER in headers:
        return
    for name, value in ours.items():
        if name not in headers:
            headers[name] = value


def is_addressed(url: str) -> bool:
    """Whether SAGA's headers are for this URL."""
    base = os.environ.get(BASE_URL)
    if base:
        return _origin(url) == _origin(base)
    path = urlsplit(url).path.rstrip("/")
    return path.endswith(MODEL_PATHS)


def gateway_of(url: str) -> str:
    """The part of a request's URL in front of ``/v1``."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.partition('/v1/')[0]}"


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = "localhost" if host in _LOOPBACK else host
    return parts.scheme, host, parts.port or _PORTS.get(parts.scheme)
