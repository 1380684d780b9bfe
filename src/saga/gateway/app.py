"""The gateway's HTTP surface.

Requests to language models go through the scheduler; ``/v1/saga/...`` is the gateway's own; the
rest of an engine's API is passed on to the engine that has the session, or to any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

import saga
from saga import wire
from saga.gateway import errors, ui
from saga.gateway.body import BodyError, Fields, decode, scalar
from saga.gateway.control import Control
from saga.gateway.errors import Dialect, GatewayError
from saga.gateway.keys import credentials
from saga.gateway.locations import MAX_ID
from saga.gateway.proxy import proxy
from saga.gateway.relay import Call, Relay
from saga.gateway.service import Gateway
from saga.http.exchange import BodyTooLong, Headers, Reply, Request

MODEL_APIS: Mapping[str, tuple[str, Dialect]] = {
    "/v1/chat/completions": ("chat", "openai"),
    "/v1/completions": ("completions", "openai"),
    "/v1/responses": ("responses", "openai"),
    "/v1/messages": ("messages", "anthropic"),
}
"""What the scheduler schedules."""
OPEN_TENANT = "default"
"""Everybody, while no keys are configured."""


class App:
    """``gateway`` is started and stopped by whoever serves the application."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._control = Control(gateway)
        self._page, self._page_headers = ui.page()
        self._own: Mapping[str, Callable[[], tuple[int, str, bytes]]] = {
            "/health": lambda: (200, "text/plain", b"ok\n"),
            "/livez": lambda: (200, "text/plain", b"ok\n"),
            "/readyz": self._ready,
            "/version": self._version,
            "/metrics": self._metrics,
        }

    async def __call__(self, request: Request, reply: Reply) -> None:
        path = request.path
        if path in ui.PATHS:
            _answer(reply, 200, "text/html; charset=utf-8", self._page, self._page_headers)
            return
        own = self._own.get(path)
        if own is not None:
            _answer(reply, *own())
            return
        dialect: Dialect = "anthropic" if path.startswith("/v1/messages") else "openai"
        try:
            await self._serve(request, reply, dialect)
        except GatewayError as error:
            self.gateway.metrics.refused[error.status] += 1
            headers = [(name.encode(), value.encode()) for name, value in error.headers.items()]
            data = errors.body(error, dialect)
            _answer(reply, error.status, "application/json", data, headers)

    async def _serve(self, request: Request, reply: Reply, dialect: Dialect) -> None:
        headers, path = request.headers, request.path
        most = self.gateway.settings.server.max_header_kib << 10
        if request.head_size > most:
            raise GatewayError(431, f"the headers are longer than {most >> 10} KiB")
        if headers.get("upgrade", "").lower() == "websocket":
            # The one status after which Codex asks by HTTP at once, and not after some retries.
            raise GatewayError(426, "there are no WebSockets here", headers={"upgrade": "HTTP/1.1"})
        if not request.target.isascii():
            raise GatewayError(400, "the path and the query must be percent-encoded")
        tenant, admin = self._who(headers)
        if path.startswith(f"{wire.CONTROL}/"):
            body = await self._body(request)
            status, document = await self._control.serve(
                request.method, request.target, body, tenant, admin=admin
            )
            _answer(reply, status, "application/json", msgspec.json.encode(document))
            return
        if tenant is None:
            raise GatewayError(403, "an admin key is not a tenant's: use one of a tenant")
        if self.gateway.draining:
            raise GatewayError(503, "the gateway is shutting down", retry_after_s=5)
        body = await self._body(request)
        api = MODEL_APIS.get(path) if request.method == "POST" else None
        if api is None:
            await proxy(self.gateway, request, body, tenant, reply)
        else:
            await self._model(*api, request, body, tenant, reply)

    # ---- requests to language models

    async def _model(
        self,
        api: str,
        dialect: Dialect,
        request: Request,
        body: bytes,
        tenant: str,
        reply: Reply,
    ) -> None:
        gateway, headers, now = self.gateway, request.headers, self.gateway.host.now
        try:
            fields = decode(body)
        except BodyError as error:
            raise GatewayError(400, error.message, param=error.param) from None
        identity = gateway.identifier.identify(tenant, headers, fields, api=api, now_us=now)
        call = Call(
            api=api,
            dialect=dialect,
            path=request.target,
            headers=headers,
            body=body,
            fields=fields,
            tenant=tenant,
            identity=identity,
            engine=self._holder(tenant, api, fields),
        )
        estimated = self._let_in(call, now)
        gateway.metrics.arrived(tenant)
        gateway.retry_budget.earn()
        relay = Relay(gateway, call, reply)
        try:
            await relay.run()
        finally:
            gateway.metrics.ended(tenant, relay.outcome)
            gateway.limits.settle(tenant, estimated, relay.num_tokens or estimated)
            gateway.limits.release(tenant)

    def _holder(self, tenant: str, api: str, fields: Fields) -> str | None:
        """The engine that holds the response which a request continues, None if that is not known.

        Among several tenants it must be one's own: an engine would continue anybody's.
        """
        before = scalar(fields.previous_response_id) if api == "responses" else None
        holder = self.gateway.responses.engine_of(tenant, before)
        if before is not None and holder is None and self.gateway.keys is not None:
            text = f"response {str(before)[:MAX_ID]!r} is not known here"
            raise GatewayError(404, text, param="previous_response_id")
        return holder

    def _let_in(self, call: Call, now: int) -> int:
        """Its estimated tokens, taken from the tenant's; GatewayError if it may not come in."""
        gateway = self.gateway
        if gateway.host.num_held >= gateway.settings.queue.max_requests:
            text = f"{gateway.host.num_held} requests wait already"
            raise GatewayError(429, text, retry_after_s=gateway.retry_after_s())
        estimated = len(call.body) // 4
        verdict = gateway.limits.take(call.tenant, estimated, now)
        if not verdict.ok:
            status = 400 if verdict.retry_after_s is None else 429
            text = f"tenant {call.tenant}: limit {verdict.exceeded} is reached"
            raise GatewayError(
                status, text, retry_after_s=verdict.retry_after_s, headers=verdict.headers
            )
        return estimated

    # ---- who and what

    def _who(self, headers: Mapping[str, str]) -> tuple[str | None, bool]:
        """The tenant, None for an admin's key, and whether it may administer."""
        gateway = self.gateway
        tenant = OPEN_TENANT
        if gateway.keys is not None:
            key = credentials(headers)
            if key is None:
                raise GatewayError(401, "no API key: send Authorization: Bearer KEY or x-api-key")
            if gateway.keys.is_admin(key):
                return None, True
            known = gateway.keys.tenant_of(key)
            if known is None:
                raise GatewayError(401, "the API key is not known")
            tenant = known
        if gateway.settings.identity.trust_tenant_header:
            tenant = _tenant_name(headers.get(wire.TENANT_HEADER)) or tenant
        return tenant, gateway.keys is None

    async def _body(self, request: Request) -> bytes:
        settings = self.gateway.settings.server
        try:
            return await request.body(settings.max_body_mib << 20, settings.body_timeout_s)
        except BodyTooLong:
            text = f"the body is longer than {settings.max_body_mib} MiB"
            raise GatewayError(413, text) from None
        except TimeoutError:
            text = f"the body did not come within {settings.body_timeout_s:g} s"
            raise GatewayError(408, text) from None

    # ---- the gateway's own pages

    def _ready(self) -> tuple[int, str, bytes]:
        if self.gateway.draining:
            return 503, "text/plain", b"shutting down\n"
        ready = any(engine.state == "up" for engine in self.gateway.fleet.engines.values())
        return (200, "text/plain", b"ok\n") if ready else (503, "text/plain", b"no engine is up\n")

    def _version(self) -> tuple[int, str, bytes]:
        return 200, "application/json", msgspec.json.encode({"version": saga.__version__})

    def _metrics(self) -> tuple[int, str, bytes]:
        return 200, "text/plain; version=0.0.4; charset=utf-8", self.gateway.metrics.page()


def _answer(
    reply: Reply, status: int, content_type: str, data: bytes, headers: Headers | None = None
) -> None:
    reply.respond(status, [(b"content-type", content_type.encode()), *(headers or [])], data)


def _tenant_name(value: str | None) -> str | None:
    """A tenant that a trusted proxy names; it may be any short name without a slash, nor a comma,
    which joins two headers of one name."""
    good = value is not None and 0 < len(value) <= 64 and value.isprintable()
    return value if good and not set("/,") & set(value or "") else None
