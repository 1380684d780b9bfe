"""The rest of an engine's API, passed through as it is."""

from __future__ import annotations

from collections.abc import Mapping
from posixpath import normpath
from typing import TYPE_CHECKING

from saga import wire
from saga.gateway.body import BodyError, decode
from saga.gateway.errors import GatewayError
from saga.gateway.sessions import scoped
from saga.gateway.upstream import Response, UpstreamError
from saga.http.exchange import Reply, Request

if TYPE_CHECKING:
    from saga.gateway.service import Gateway

RESPONSES = "/v1/responses/"
PASSED = ("/v1/", "/tokenize", "/detokenize", "/rerank", "/score", "/classify", "/pooling")
"""Paths that are passed on; an engine's other routes are its operator's."""
KEPT = (wire.CONTROL, "/v1/load_lora_adapter", "/v1/unload_lora_adapter")
"""Paths among them that change an engine for everybody."""


async def proxy(gateway: Gateway, request: Request, body: bytes, tenant: str, reply: Reply) -> None:
    """Asks one engine and passes its answer on. Stored responses are asked of who holds them; what
    names a session, of its home; the rest, of the engine with the least to do."""
    path, headers = request.path, request.headers
    # What something in front of an engine could take for another path is not passed on.
    plain = normpath(path) == (path.rstrip("/") or "/")
    if not plain or not path.startswith(PASSED) or path.startswith(KEPT):
        raise GatewayError(404, f"{request.method} {path} is not here")
    engine = _engine_for(gateway, path, headers, body, tenant)
    upstream = gateway.upstream
    try:
        response = await upstream.send(
            gateway.fleet.engines[engine].url,
            request.method,
            request.target,
            gateway.proxy_headers(headers),
            body or None,
            timeouts=gateway.timeouts,
        )
        await _pass_on(response, reply)
    except UpstreamError as error:
        gateway.fleet.note_failure(engine, error)
        raise GatewayError(502, f"engine {engine}: {error}") from None


async def _pass_on(response: Response, reply: Reply) -> None:
    """Raises UpstreamError if nothing was sent yet."""
    try:
        chunk = await response.chunk()
        reply.start(response.status, response.headers)
        while chunk:
            reply.write(chunk)
            await reply.drain()
            try:
                chunk = await response.chunk()
            except UpstreamError as error:  # half a body must not look like a whole one
                raise ConnectionResetError(str(error)) from error
        reply.end()
    finally:
        response.abort()


def _engine_for(
    gateway: Gateway, path: str, headers: Mapping[str, str], body: bytes, tenant: str
) -> str:
    up = [name for name in gateway.fleet.engines if gateway.fleet.usable(name)]
    if not up:
        raise GatewayError(503, "no engine is up", retry_after_s=5)
    if path.startswith(RESPONSES):
        response = path.removeprefix(RESPONSES).partition("/")[0]
        holder = gateway.responses.engine_of(tenant, response)
        if holder is None or holder not in up:
            raise GatewayError(404, f"response {response!r} is not known here")
        return holder
    home = _home(gateway, headers, body, tenant)
    if home in up:
        return home
    engines = gateway.host.scheduler.state.engines
    return min(up, key=lambda name: len(engines[name].requests) if name in engines else 0)


def _home(gateway: Gateway, headers: Mapping[str, str], body: bytes, tenant: str) -> str:
    """The home of the session that the request names, if it names one."""
    try:
        fields = decode(body or b"{}")
    except BodyError:
        return ""  # not JSON, such as a sound file
    identity = gateway.identifier.identify(
        tenant, headers, fields, api="proxy", now_us=gateway.host.now
    )
    session = gateway.host.scheduler.state.sessions.get(scoped(tenant, identity.session))
    return session.home.id if session is not None and session.home is not None else ""
